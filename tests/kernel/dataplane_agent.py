"""A process of a pod, for tests of the dataplane: creates sockets in the pod and passes them to the test.

The pod of a socket is decided when the socket is created: by the network namespace, the cgroup and the user of the
process that creates it. So the test asks a process in the right place, over the socket on descriptor 3. It can also
play the sidecar: a TCP proxy that handles original destinations as Envoy does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

SO_ORIGINAL_DST = 80
log: list[dict] = []
processes: list[subprocess.Popen[str]] = []


def original_dst(sock: socket.socket) -> list:
    port, raw = struct.unpack_from("!2xH4s", sock.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16))
    return [socket.inet_ntoa(raw), port]


def copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while True:
            try:
                data = source.recv(65536)
            except BlockingIOError:  # a blocking recv in a sockhash may report this while another thread writes
                continue
            if not data:
                break
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for sock in (source, sink):  # a reset is passed on
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def serve(down: socket.socket, inbound: bool) -> None:
    entry: dict = {"inbound": inbound}
    with down, socket.socket() as up:
        try:
            entry |= {"peer": down.getpeername(), "local": down.getsockname()}
            entry["original"] = original_dst(down)
            if entry["original"][1] in (15001, 15006):
                raise ConnectionRefusedError("would call itself")
            if inbound:
                up.bind(("127.0.0.6", 0))
            up.connect(tuple(entry["original"]))
            entry["upstream_local"] = up.getsockname()
        except OSError as failed:
            entry["error"] = str(failed)
            log.append(entry)
            return
        log.append(entry)
        other = threading.Thread(target=copy, args=(up, down), daemon=True)
        other.start()
        copy(down, up)
        other.join()


def sidecar(port: int) -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", port))
    listener.listen(128)

    def loop() -> None:
        while True:
            down, _ = listener.accept()
            threading.Thread(target=serve, args=(down, port == 15006), daemon=True).start()

    threading.Thread(target=loop, daemon=True).start()


def datagrams(request: dict) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if request.get("at"):
        sock.bind(tuple(request["at"]))
    if request.get("to"):
        sock.connect(tuple(request["to"]))
    return sock


def ask_original_dst(kind: str) -> object:
    family = socket.AF_INET6 if kind == "v6" else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as sock:
        if kind == "listener":
            sock.bind(("127.0.0.1", 0))
            sock.listen(1)
        if kind == "udp":
            sock.connect(("127.0.0.1", 9))
        try:
            return original_dst(sock)
        except OSError as failed:
            return failed.errno


def handle(request: dict) -> tuple[object, socket.socket | None]:  # noqa: C901, PLR0911, PLR0912 - one operation after another
    op = request["op"]
    if op == "log":
        return list(log), None
    if op == "sidecar":
        sidecar(15001)
        sidecar(15006)
        return True, None
    if op == "spawn":
        # The user of a sidecar may not run the tests' own Python, nor read their files.
        argv = ["/usr/bin/python3", "-I", "-S", "-c", *request["argv"]]
        processes.append(subprocess.Popen(argv, stdin=-1, stdout=-1, text=True))
        return processes[-1].stdout.readline().strip(), None
    if op == "say":
        process = processes[request["process"]]
        process.stdin.write(request["line"] + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip(), None
    if op == "udp":
        return True, datagrams(request)
    if op == "original_dst":
        return ask_original_dst(request["kind"]), None
    sock = socket.socket(socket.AF_INET6 if request.get("v6") else socket.AF_INET)
    if op == "socket":
        return True, sock
    if op == "begin":
        # A reset at its end, so that nothing of it stays.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        if request.get("bind"):
            sock.bind(tuple(request["bind"]))
        sock.setblocking(False)
        sock.connect_ex(tuple(request["to"]))
        return True, sock
    if op == "listen":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if request.get("reuseport"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if request.get("v6only"):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if request.get("rcvbuf"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, request["rcvbuf"])
        sock.bind(tuple(request["at"]))
        sock.listen(128)
        return True, sock
    if request.get("reuse"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if request.get("bind"):
        sock.bind(tuple(request["bind"]))
    sock.settimeout(5)
    try:
        sock.connect(tuple(request["to"]))
    except OSError as failed:
        sock.close()
        return failed.errno or 110, None
    sock.settimeout(None)
    return [sock.getpeername()[:2], sock.getsockname()[:2]], sock


def main() -> None:
    cgroup, netns, uid, gid = sys.argv[1:5]
    libc = ctypes.CDLL(None)
    if cgroup != "-":
        Path(cgroup, "cgroup.procs").write_text(str(os.getpid()))
    if netns == "new":
        libc.unshare(0x40000000)
    else:
        fd = os.open(netns, os.O_RDONLY)
        libc.setns(fd, 0x40000000)
        os.close(fd)
    if (uid, gid) != ("0", "0"):
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
        libc.prctl(4, 1)  # dumpable again, as a process is that was started as this user
    with socket.socket(fileno=3) as control:
        control.send(b"ready")
        while request := control.recv(65536):
            answer, sock = handle(json.loads(request))
            text = json.dumps(answer).encode()
            if sock is None:
                control.send(text)
            else:
                socket.send_fds(control, [text], [sock.fileno()])
                sock.close()


main()
