"""Who sees and may send complete packets in a network namespace: its AF_PACKET sockets, from /proc/net/packet."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NamedTuple

from merbridge_lab.text import lines_of

_ROW = 9


class PacketSocket(NamedTuple):
    """A packet socket: the inode that /proc/PID/fd shows, and what it receives; `link` is empty for all links."""

    inode: int
    what: str
    link: str


def here() -> list[PacketSocket]:
    """List those of the calling thread's network namespace; a kernel without them has no such file. Raises OSError."""
    try:
        told = Path("/proc/thread-self/net/packet").read_text()
    except FileNotFoundError:
        return []
    return read(told, dict(socket.if_nameindex()))


def read(told: str, names: dict[int, str]) -> list[PacketSocket]:
    """Parse /proc/net/packet: socket, references, type, protocol, link, whether it runs, memory, user and inode."""
    found = []
    for line in lines_of(told)[1:]:
        words = line.split()
        if len(words) == _ROW:
            protocol, link = int(words[3], 16), int(words[4])
            what = {0: "nothing", 3: "every packet"}.get(protocol, f"packets of protocol {protocol:#06x}")
            found.append(PacketSocket(int(words[8]), what, names.get(link, f"link {link}") if link else ""))
    return found
