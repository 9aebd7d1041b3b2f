"""Which addresses a network namespace has a route to, from /proc/net/route: the kernel's main table."""

from __future__ import annotations

import ipaddress
import socket
import struct
from pathlib import Path

from merbridge_lab.adapters.netns import run_inside
from merbridge_lab.text import lines_of, read_text

#: RTF_REJECT (include/uapi/linux/route.h): a route of the type unreachable or prohibit.
_REJECTED = 0x0200
#: The interface of a route that leads nowhere (fib_route_seq_show in net/ipv4/fib_trie.c).
_NOWHERE = "*"
_EVERYTHING = ipaddress.IPv4Network("0.0.0.0/0")


def routed(netns: Path) -> dict[ipaddress.IPv4Network, bool]:
    """Return, for each range with a route of its own, whether that leads somewhere; the longest prefix decides.

    Empty if every address has a route. Other tables than the main one are not looked at. Raises OSError.
    """
    return parse(run_inside(netns, lambda: read_text(Path("/proc/thread-self/net/route"))))


def parse(text: str) -> dict[ipaddress.IPv4Network, bool]:
    """Return what `routed` does, from the text of the file. Raises ValueError."""
    best: dict[ipaddress.IPv4Network, tuple[int, bool]] = {_EVERYTHING: (2**32, False)}
    for line in lines_of(text)[1:]:
        interface, address, _, flags, _, _, metric, mask, *_ = line.split()
        leads = interface != _NOWHERE and not int(flags, 16) & _REJECTED
        network = ipaddress.IPv4Network((_dotted(address), _dotted(mask)))
        if network not in best or int(metric) < best[network][0]:
            best[network] = int(metric), leads
    found = {network: leads for network, (_, leads) in best.items()}
    return {} if all(found.values()) else found


def _dotted(word: str) -> str:
    """Return an address that the kernel printed as a native integer."""
    return socket.inet_ntoa(struct.pack("=I", int(word, 16)))
