"""Many connections at once in one pod: its sidecar, its server or its clients, each a process that the agent starts.

Lines come in on standard input, and for each one line goes out.
"""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import struct
import sys
import threading

ORIGINAL_DST, NO_PORT_YET = 80, 24
BATCH = 1000


def listener(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # several processes: each may open 20,000 files here
    sock.bind(("0.0.0.0", port))
    sock.listen(65535)
    return sock


class Loop:
    """Copies between sockets: with `others`, from one to its other; else back to where it came from."""

    def __init__(self, ports: list[int], *, proxy: bool) -> None:
        self.poll = select.epoll()
        self.proxy = proxy
        self.socks: dict[int, socket.socket] = {}
        self.others: dict[int, socket.socket] = {}
        self.failed = 0
        self.listeners = {}
        for port in ports:
            sock = listener(port)
            self.listeners[sock.fileno()] = (sock, port)
            self.poll.register(sock, select.EPOLLIN)

    def add(self, sock: socket.socket, other: socket.socket) -> None:
        self.socks[sock.fileno()], self.others[sock.fileno()] = sock, other
        self.poll.register(sock, select.EPOLLIN)

    def accept(self, sock: socket.socket, port: int) -> None:
        down, _ = sock.accept()
        if not self.proxy:
            self.add(down, down)
            return
        try:
            to, raw = struct.unpack_from("!2xH4s", down.getsockopt(socket.SOL_IP, ORIGINAL_DST, 16))
            up = socket.socket()
            if port == 15006:
                up.setsockopt(socket.SOL_IP, NO_PORT_YET, 1)
                up.bind(("127.0.0.6", 0))
            up.connect((socket.inet_ntoa(raw), to))
        except OSError:
            self.failed += 1
            down.close()
            return
        self.add(down, up)
        self.add(up, down)

    def copy(self, fd: int) -> None:
        sock = self.socks.get(fd)
        if sock is None:
            return
        data = b""
        with contextlib.suppress(OSError):
            data = sock.recv(65536)
        other = self.others[fd]
        if data:
            with contextlib.suppress(OSError):
                other.sendall(data)
            return
        for each in {sock, other}:
            self.socks.pop(each.fileno(), None)
            self.others.pop(each.fileno(), None)
            each.close()

    def run(self) -> None:
        while True:
            for fd, _ in self.poll.poll(-1, 512):
                if fd in self.listeners:
                    self.accept(*self.listeners[fd])
                else:
                    self.copy(fd)


class Clients:
    def __init__(self) -> None:
        self.socks: list[socket.socket] = []

    def open(self, count: int, ip: str, ports: list[int]) -> str:
        """Open so many connections; the sidecar may need a moment for those before."""
        for number in range(count):
            sock = socket.socket()
            sock.settimeout(60)
            try:
                sock.connect((ip, ports[number % len(ports)]))
            except OSError as failed:
                return f"after {number}: {failed}"
            self.socks.append(sock)
            if number % BATCH == BATCH - 1:
                sock.sendall(b"sync")  # not faster than the last of them is served
                if sock.recv(10) != b"sync":
                    return f"after {number}: not served"
        return "done"

    def talk(self) -> str:
        wrong = 0
        for at in range(0, len(self.socks), BATCH):
            part = self.socks[at : at + BATCH]
            for number, sock in enumerate(part):
                with contextlib.suppress(OSError):
                    sock.sendall(b"%07d" % (at + number))
            for number, sock in enumerate(part):
                try:
                    wrong += sock.recv(10) != b"%07d" % (at + number)
                except OSError:
                    wrong += 1
        return f"{len(self.socks)} talked, {wrong} wrong"

    def close(self) -> str:
        for sock in self.socks:
            sock.close()
        self.socks.clear()
        return "closed"


def main() -> None:
    role, *ports = sys.argv[1:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients, loop = Clients(), None
    if role != "clients":
        loop = Loop([int(port) for port in ports], proxy=role == "sidecar")
        threading.Thread(target=loop.run, daemon=True).start()
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "open":
            answer = clients.open(int(rest[0]), rest[1], [int(port) for port in rest[2:]])
        elif word == "failed":
            answer = str(loop.failed if loop else 0)
        else:
            answer = clients.talk() if word == "talk" else clients.close()
        print(answer, flush=True)  # noqa: T201


main()
