"""The generation of a namespace's nftables: a number that every change of the rules moves.

Reading the rules before and after shows that they are the same; the generation shows that they were the same in
between. Source: nft_net.base_seq in net/netfilter/nf_tables_api.c, asked by NFT_MSG_GETGEN.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from merbridge_lab.adapters.netns import run_inside

if TYPE_CHECKING:
    from pathlib import Path

# <linux/netfilter/nfnetlink.h>, <linux/netfilter/nf_tables.h>
_NETLINK_NETFILTER = 12
_SUBSYS_NFTABLES = 10
_MSG_NEWGEN = 15
_MSG_GETGEN = 16
_ATTR_ID = 1
_NLM_F_REQUEST = 1

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NFGEN = struct.Struct("=BBH")  # family, version, resource
_ATTRIBUTE = struct.Struct("=HH")  # length, type


def generation(netns: Path) -> int | None:
    """Give the generation of the rules in the namespace pinned at `netns`; None where the kernel has no nftables."""

    def ask() -> int | None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.settimeout(1.0)
            body = _NFGEN.pack(socket.AF_UNSPEC, 0, 0)
            kind = (_SUBSYS_NFTABLES << 8) | _MSG_GETGEN
            netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST, 1, 0) + body)
            return _read(netlink.recv(4096))

    try:
        return run_inside(netns, ask)
    except OSError:
        return None


def _read(answer: bytes) -> int | None:
    length, kind, *_rest = _HEADER.unpack_from(answer)
    if kind != (_SUBSYS_NFTABLES << 8) | _MSG_NEWGEN:
        return None
    at = _HEADER.size + _NFGEN.size
    while at + _ATTRIBUTE.size <= length:
        size, attribute = _ATTRIBUTE.unpack_from(answer, at)
        if attribute == _ATTR_ID:
            number: int = struct.unpack_from("!I", answer, at + _ATTRIBUTE.size)[0]
            return number
        at += (size + 3) & ~3
    return None
