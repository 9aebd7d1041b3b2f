"""The TCP connections of a network namespace, from /proc/net/tcp (proc_net_tcp.rst in the kernel's documentation)."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from merbridge_lab.adapters.netns import run_inside
from merbridge_lab.text import lines_of

_ESTABLISHED, _LISTEN = "01", "0A"


@dataclass(frozen=True)
class Connection:
    """One end of a connection: addresses as "ip:port", and the user that owns the socket."""

    local: str
    remote: str
    uid: int


class Listener(NamedTuple):
    """A socket that accepts connections: its port, the inode that /proc/PID/fd shows, and the user that owns it."""

    port: int
    inode: int
    uid: int


def _address(text: str) -> str:
    # The address is printed as one number in host byte order, the port as usual.
    raw, _, port = text.partition(":")
    return f"{socket.inet_ntoa(int(raw, 16).to_bytes(4, sys.byteorder))}:{int(port, 16)}"


def established(netns: Path) -> list[Connection]:
    """List the established IPv4 connections in the namespace pinned at `netns`. Raises OSError."""
    text = run_inside(netns, Path("/proc/thread-self/net/tcp").read_text)
    rows = [line.split() for line in lines_of(text)[1:]]
    return [Connection(_address(row[1]), _address(row[2]), int(row[7])) for row in rows if row[3] == _ESTABLISHED]


def listening(netns: Path) -> list[Listener]:
    """List the TCP sockets that accept connections in the namespace pinned at `netns`, of IPv4 and IPv6."""

    def read() -> list[str]:
        tables = [Path("/proc/thread-self/net", name) for name in ("tcp", "tcp6")]
        return [table.read_text() for table in tables if table.exists()]

    return [listener for table in run_inside(netns, read) for listener in listeners(table)]


def listeners(table: str) -> list[Listener]:
    """Return the sockets that accept connections, from the text of /proc/net/tcp or tcp6."""
    rows = [line.split() for line in lines_of(table)[1:]]
    return [Listener(int(row[1].rpartition(":")[2], 16), int(row[9]), int(row[7])) for row in rows if row[3] == _LISTEN]
