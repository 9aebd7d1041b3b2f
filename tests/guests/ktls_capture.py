"""Run in a guest: an app with the kernel's TLS, and what a packet capture shows of it. Prints a JSON object.

`python ktls_capture.py END,LEGS[,blind] …`, a case each. END (none, client or server) is the app with kTLS, in a pod
that our dataplane serves. The other end is in a pod without a sidecar, and does the same TLS itself. So what the served
app sends goes through its sidecar, by eBPF where it may, and then over a wire that is captured. With "none", neither
end encrypts. LEGS is all, or safe. With "blind" the programs are not told where the kernel notes that a socket has
kTLS.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "kernel"))

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from dataplane_rig import Rig

from merbridge_lab.adapters import netns
from merbridge_lab.dataplane import kernel_facts
from merbridge_lab.dataplane.btf import Btf
from merbridge_lab.dataplane.legs import ALL_LEGS, Legs

PORT = 5000
SAFE = Legs(True, False, False, "as on anybody's pods")
#: What the app of either end sends; no more than fits into one record.
NEEDLES = {"app": b"the-served-app-says-" * 40, "far": b"the-other-end-says--" * 40}
KEY, SALT, IV = b"merlab-key-of-16", b"salt", b"merlab-i"
TCP_ULP, SOL_TLS, TLS_TX, TLS_RX, TLS_1_3, AES_GCM_128 = 31, 282, 1, 2, 0x0304, 51
APPLICATION_DATA = b"\x17"
HEAD = struct.Struct("!BHH")
ETH_P_ALL = 3


def set_ktls(sock: socket.socket) -> None:
    """Have the kernel encrypt and decrypt on `sock`. Raises OSError."""
    info = struct.pack("=HH8s16s4s8s", TLS_1_3, AES_GCM_128, IV, KEY, SALT, bytes(8))
    sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    for direction in (TLS_TX, TLS_RX):
        sock.setsockopt(SOL_TLS, direction, info)


def record(text: bytes) -> bytes:
    """Return the first record of a connection, encrypted."""
    head = HEAD.pack(23, 0x0303, len(text) + 1 + 16)
    return head + AESGCM(KEY).encrypt(SALT + IV, text + APPLICATION_DATA, head)


def opened(data: bytes) -> bytes | None:
    """Return what is in the first record of a connection; None if it is none."""
    try:
        return AESGCM(KEY).decrypt(SALT + IV, data[HEAD.size :], data[: HEAD.size])[:-1]
    except InvalidTag:
        return None


def received(sock: socket.socket, size: int) -> bytes:
    """Return what comes, at most `size` bytes, until nothing comes for a while."""
    data = b""
    sock.settimeout(10)
    while len(data) < size:
        try:
            chunk = sock.recv(size - len(data))
        except (TimeoutError, BlockingIOError):
            break
        except OSError as error:
            return data + b" (" + errno.errorcode.get(error.errno or 0, "?").encode() + b")"
        if not chunk:
            break
        data += chunk
    return data


def capture(place) -> socket.socket:
    """Return a packet socket in a pod, for all of its devices."""

    def opened_there() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        return sock

    return netns.run_inside(place.app.netns, opened_there)


def packets(sock: socket.socket) -> bytes:
    sock.settimeout(1)
    seen = b""
    while True:
        try:
            seen += sock.recv(1 << 17)
        except TimeoutError:
            return seen


def found(which: str, legs: Legs) -> dict[str, object]:
    rig = Rig()
    try:
        served, far = (rig.hello, rig.control_client) if which == "server" else (rig.sleep, rig.hello)
        rig.plane.attach([dataclasses.replace(served.endpoint, legs=legs)])
        wires = {name: capture(place) for name, place in (("served", served), ("far", far))}
        server, client = (served, far) if which == "server" else (far, served)
        with server.app.listen(PORT) as listener, client.app.connect(server.ip, PORT) as dialled:
            accepted = listener.accept()[0]
            app, other = (accepted, dialled) if which == "server" else (dialled, accepted)
            refused = ""
            try:
                if which != "none":
                    set_ktls(app)
            except OSError as error:
                refused = errno.errorcode[error.errno]
            if refused:
                return {"refused": refused}
            is_plain = which == "none"
            app.sendall(NEEDLES["app"])
            size = len(NEEDLES["app"] if is_plain else record(NEEDLES["app"]))
            at_far = received(other, size)
            other.sendall(NEEDLES["far"] if is_plain else record(NEEDLES["far"]))
            at_app = received(app, len(NEEDLES["far"]))
            seen = {name: packets(wire) for name, wire in wires.items()}
            accepted.close()
        counters = rig.counters(served.name)
        return {
            "refused": "",
            "far reads": "needle" if at_far == NEEDLES["app"] else "record" if opened(at_far) == NEEDLES["app"] else "",
            "app reads": at_app == NEEDLES["far"],
            "plaintext": sorted(
                f"{who} at {name}" for name, data in seen.items() for who, text in NEEDLES.items() if text in data
            ),
            "ciphertext": sorted(
                f"{who} at {name}"
                for name, data in seen.items()
                for who, text in NEEDLES.items()
                if record(text) in data
            ),
            "passed_ktls": counters["passed_ktls"],
            "moved": {name: value for name, value in counters.items() if name.endswith("redirected_bytes")},
        }
    finally:
        rig.close()


def case(words: str) -> dict[str, object]:
    end, legs, *more = words.split(",")
    told = kernel_facts.told
    # A pointer that is null in every socket of these: no socket seems to have kTLS.
    null = Btf(Path("/sys/kernel/btf/vmlinux").read_bytes()).member("sock", "sk_filter").offset
    if more == ["blind"]:
        kernel_facts.told = lambda: told() | {"sk_ulp_ops": null}
    try:
        return found(end, {"safe": SAFE, "all": ALL_LEGS}[legs])
    finally:
        kernel_facts.told = told


if __name__ == "__main__":
    subprocess.run(["modprobe", "tls"], check=False)
    json.dump({words: case(words) for words in sys.argv[1:]}, sys.stdout)
