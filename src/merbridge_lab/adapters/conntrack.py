"""Which source addresses conntrack has changed, in a network namespace.

Two connections from one port to two destinations may be redirected to one listener, and then have the same addresses.
Conntrack then gives the later one another source port (nf_nat_setup_info in net/netfilter/nf_nat_core.c), even if no
rule requests it. The sending and the accepting end of the connection then name different ports.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from merbridge_lab.adapters import netlink_hooks
from merbridge_lab.adapters.netns import run_inside
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Unread, UnreadError
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

#: "ip:port" as the sender of a connection knows it → as it arrived, for each connection whose address was changed.
Sources = dict[str, frozenset[str]]

# <linux/netfilter/nfnetlink.h>, <linux/netfilter/nfnetlink_conntrack.h>, <linux/netfilter/nf_conntrack_common.h>
_NETFILTER, _GET = 12, 0x101
_ORIGINAL, _REPLY, _STATUS = 1, 2, 3
_IP, _PROTOCOL = 1, 2
_PLAIN = 48
_CHANGED = 0x10 | 0x20  # IPS_SRC_NAT, IPS_DST_NAT

End = tuple[str, int]


class Translated(NamedTuple):
    """A TCP connection over IPv4 with an end that conntrack changes (NAT), as (address, port).

    `source` and `destination` are as it was sent, `seen_source` and `seen_destination` as it is delivered.
    """

    source: End
    destination: End
    seen_source: End
    seen_destination: End


def translated() -> list[Translated]:
    """List what conntrack translates in the calling thread's network namespace. Raises OSError."""
    found = []
    # All are requested, once: to find them the kernel walks through the table of the whole machine.
    for message in netlink_hooks.dump(_NETFILTER, _GET, struct.pack("=BBH", socket.AF_INET, 0, 0)):
        told = netlink_hooks.attributes(message[4:])
        there, back = told.get(_ORIGINAL, b""), told.get(_REPLY, b"")
        is_changed = int.from_bytes(told.get(_STATUS, b""), "big") & _CHANGED
        if not is_changed and len(there) == len(back) == _PLAIN and _plain(there) == _plain(back)[::-1]:
            continue
        sent, answered = _ends(there), _ends(back)
        if sent and answered and (is_changed or sent != answered[::-1]):
            found.append(Translated(*sent, answered[1], answered[0]))
    return found


def _plain(raw: bytes) -> tuple[bytes, bytes]:
    """Read both ends of a tuple of IPv4 and ports at their fixed offsets: there may be many, and few are changed."""
    return raw[8:12] + raw[36:38], raw[16:20] + raw[44:46]


def _ends(raw: bytes) -> tuple[End, End] | None:
    """Parse a tuple: its source and destination; None if it is not TCP."""
    parts = netlink_hooks.attributes(raw)
    ip, protocol = netlink_hooks.attributes(parts.get(_IP, b"")), netlink_hooks.attributes(parts.get(_PROTOCOL, b""))
    if protocol.get(1) != bytes([socket.IPPROTO_TCP]) or not {1, 2} <= ip.keys() or not {2, 3} <= protocol.keys():
        return None
    near, far = (int.from_bytes(protocol[each], "big") for each in (2, 3))
    return (socket.inet_ntoa(ip[1]), near), (socket.inet_ntoa(ip[2]), far)


def changed_sources(netns: Path) -> Sources:
    """Read what conntrack remembers of TCP in `netns`, which includes the last two minutes of ended connections.

    Raises LabError.
    """

    def work() -> Sources:
        return _changed((_address(each.source), _address(each.seen_source)) for each in translated())

    try:
        return run_inside(netns, work)
    except OSError as error:
        raise LabError(
            f"conntrack's table cannot be read in {netns}, so source ports cannot be followed: {error}",
            hint="use a kernel with CONFIG_NF_CT_NETLINK",
            id="requirement.missing",
        ) from error


def read_changed_sources(told: str) -> Sources:
    """Parse the same from the output of `conntrack -L`, or from /proc/net/nf_conntrack.

    What is between and behind the two directions (packets, zones, marks) depends on the kernel's settings. Only their
    order is certain: the original one first. Raise UnreadError for a connection that cannot be parsed.
    """

    def ends(line: str) -> tuple[str, str]:
        words = [word.partition("=")[::2] for word in line.split()]
        found = {name: [value for key, value in words if key == name] for name in ("src", "dst", "sport", "dport")}
        if any(len(values) != 2 for values in found.values()):  # noqa: PLR2004 - there and back
            raise UnreadError(Unread("conntrack", f"this is not a TCP connection: {line.strip()}"))
        if ":" in found["src"][0]:  # nothing of the lab uses IPv6
            return "", ""
        return f"{found['src'][0]}:{found['sport'][0]}", f"{found['dst'][1]}:{found['dport'][1]}"

    return _changed(ends(line) for line in lines_of(told) if "tcp" in line.split()[:3])


def merge(many: Iterable[Mapping[str, frozenset[str]]]) -> Sources:
    """Merge the results of several namespaces that one connection may have passed in sequence."""
    joined: Sources = {}
    for each in many:
        for sent, arrived in each.items():
            joined[sent] = joined.get(sent, frozenset()) | arrived
    return joined


def _changed(ends: Iterable[tuple[str, str]]) -> Sources:
    return merge({sent: frozenset({arrived})} for sent, arrived in ends if sent and arrived and sent != arrived)


def _address(end: End) -> str:
    return f"{end[0]}:{end[1]}"
