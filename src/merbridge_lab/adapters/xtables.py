"""The legacy tables of a network namespace as the kernel itself tells of them: no tool can be missing or lie.

A table is there from the moment that somebody first asks for it in the namespace, and stays. Source: xt_proto_init()
and ipt_get_info() in net/ipv4/netfilter/ip_tables.c; ip6_tables.c and arp_tables.c have the same.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from merbridge_lab.adapters.netns import run_inside

_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class _Protocol:
    level: int
    get_info: int
    hooks: int


# IPT_SO_GET_INFO and IP6T_SO_GET_INFO are 64, ARPT_SO_GET_INFO is 96.
_PROTOCOLS = {
    "ip": _Protocol(socket.IPPROTO_IP, 64, 5),
    "ip6": _Protocol(socket.IPPROTO_IPV6, 64, 5),
    "arp": _Protocol(socket.IPPROTO_IP, 96, 3),
}
_NAME = 32


@dataclass(frozen=True)
class Table:
    """One legacy table; `entries` counts its rules, and two for each chain that somebody made: 0 as it comes."""

    family: str
    name: str
    entries: int


def read(netns: Path) -> tuple[Table, ...]:
    """Read which tables are there in the namespace at `netns`, and how much is in each; asking makes none.

    Raises OSError where it cannot be entered, or they cannot be read.
    """
    return run_inside(netns, _read)


def _read() -> tuple[Table, ...]:
    found = []
    for family, protocol in _PROTOCOLS.items():
        try:
            names = Path(f"/proc/thread-self/net/{family}_tables_names").read_text().split()
        except FileNotFoundError:
            continue  # the kernel has not loaded this family's tables: there can be no rule in them
        found += [Table(family, name, _entries(protocol, name)) for name in sorted(names)]
    return tuple(found)


def _entries(protocol: _Protocol, name: str) -> int:
    # struct ipt_getinfo: name, valid_hooks, hook_entry[], underflow[], num_entries, size
    layout = struct.Struct(f"={_NAME}sI{protocol.hooks}I{protocol.hooks}III")
    buffer = ctypes.create_string_buffer(layout.pack(name.encode(), *[0] * (2 * protocol.hooks + 3)), layout.size)
    family = socket.AF_INET6 if protocol.level == socket.IPPROTO_IPV6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as asking:
        length = ctypes.c_uint32(layout.size)
        if _LIBC.getsockopt(asking.fileno(), protocol.level, protocol.get_info, buffer, ctypes.byref(length)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"the legacy table {name}: {os.strerror(number)}")
    _, hooks, *_, entries, _size = layout.unpack(buffer.raw)
    # Each hook ends with a policy, and the table with an entry that no packet reaches.
    return int(entries) - int(hooks).bit_count() - 1
