"""What the kernel's TCP sent for each socket of a network namespace: payload, without headers, SYN and FIN.

For an existing socket the kernel reports it on request (sock_diag); for one that ends, at that moment, to all
listeners. A redirect from socket to socket bypasses TCP: its bytes are not counted here, whatever a BPF program does.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from merbridge_lab.adapters import netlink_hooks, netns

if TYPE_CHECKING:
    from pathlib import Path

# <linux/sock_diag.h>, <linux/inet_diag.h>, <linux/tcp.h>
_SOCK_DIAG, _BY_FAMILY, _TCP_DESTROY = 4, 20, 1
_ALL_STATES, _INFO = 0xFFFFFFFF, 2
_MESSAGE, _COOKIE = 72, 44
_BYTES_SENT = 200  # tcpi_bytes_sent, since Linux 4.19
_SO_RCVBUFFORCE = 33
#: Room for some thousands of sockets that end before they are read.
_ROOM = 8 << 20
_MAPPED = bytes(10) + b"\xff\xff"


class Sent(NamedTuple):
    """One end of a connection: both addresses as "ip:port", the socket's cookie, and the bytes it sent by TCP."""

    local: str
    remote: str
    cookie: int
    sent: int


class Watch:
    """The TCP sockets of one network namespace, from now on: existing ones, and those that ended."""

    def __init__(self, namespace: Path) -> None:
        self._namespace = namespace
        self._ended: dict[int, Sent] = {}
        probe()
        self._told = netns.run_inside(namespace, _listen)

    def look(self) -> list[Sent]:
        """Return every socket that exists or has ended since this object was created. Raises OSError.

        Ended sockets are read first, and again last: this covers one that ends meanwhile.
        """
        live = netns.run_inside(self._namespace, _live)
        while True:
            try:
                raw = self._told.recv(1 << 17)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise OSError(error.errno, "more sockets ended than the kernel could report") from error
                raise
            self._ended.update((each.cookie, each) for each in _messages(raw))
        return [*self._ended.values(), *(each for each in live if each.cookie not in self._ended)]

    def close(self) -> None:
        """Stop listening."""
        self._told.close()


@functools.cache
def probe() -> None:
    """Check, once, that this kernel reports sockets; the first request loads its modules. Raises OSError."""
    _live()
    _listen().close()


def _listen() -> socket.socket:
    told = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG)
    try:
        with contextlib.suppress(OSError):  # then the buffer has the machine's default size
            told.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        told.setblocking(False)
        told.bind((0, 1 << (_TCP_DESTROY - 1)))
    except BaseException:
        told.close()
        raise
    return told


def _live() -> list[Sent]:
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        body = struct.pack("=BBBBI48x", family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0, _ALL_STATES)
        try:
            messages = netlink_hooks.dump(_SOCK_DIAG, _BY_FAMILY, body)
        except FileNotFoundError as error:
            raise OSError(errno.ENOENT, "this kernel has no CONFIG_INET_DIAG, or its modules are not loaded") from error
        found += [each for message in messages if (each := _read(message)) is not None]
    return found


def _messages(raw: bytes) -> list[Sent]:
    found, at = [], 0
    while at + netlink_hooks.HEADER.size <= len(raw):
        length, *_ = netlink_hooks.HEADER.unpack_from(raw, at)
        each = _read(raw[at + netlink_hooks.HEADER.size : at + length])
        if each is not None:
            found.append(each)
        at += max((length + 3) & ~3, netlink_hooks.HEADER.size)
    return found


def _read(message: bytes) -> Sent | None:
    """Parse one inet_diag_msg; None for one in TIME_WAIT, which TCP reported when it ended."""
    if len(message) < _MESSAGE:
        return None
    info = netlink_hooks.attributes(message[_MESSAGE:]).get(_INFO, b"")
    if len(info) < _BYTES_SENT + 8:
        return None
    near, far = struct.unpack_from("!HH", message, 4)
    low, high = struct.unpack_from("=II", message, _COOKIE)
    (sent,) = struct.unpack_from("=Q", info, _BYTES_SENT)
    local, remote = _address(message[0], message[8:24]), _address(message[0], message[24:40])
    return Sent(f"{local}:{near}", f"{remote}:{far}", low | high << 32, sent)


def _address(family: int, raw: bytes) -> str:
    """Return an address as text; an address that is mapped into IPv6 as IPv4."""
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, raw[:4])
    return socket.inet_ntop(socket.AF_INET, raw[12:]) if raw[:12] == _MAPPED else socket.inet_ntop(family, raw)
