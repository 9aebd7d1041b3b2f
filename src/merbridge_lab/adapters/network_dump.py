"""Everything that decides where a network namespace sends TCP, read at once: one dump for each kind, through netlink.

Each object found is one line of text that contains everything that tells it from another. So two namespaces are equal
if their lines are equal, and an unexpected line names the object.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters import rare_redirects, sysctls
from merbridge_lab.adapters.netns import run_inside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_UP, _LOWER_UP, _NOARP = 0x1, 0x10000, 0x80
#: IFF_* without information: reported above, about the kind of link, or about multicast, which TCP does not use.
_FLAGS_TOLD = _UP | _LOWER_UP | _NOARP | 0x2 | 0x8 | 0x40 | 0x1000
_FLAGS = {0x100: "promiscuous", 0x200: "all multicast"}
#: Attributes of links by the words for them, with the kernel's values for every link.
_LINK_PLAIN = {
    "IFLA_GROUP": ("group", 0),
    "IFLA_TXQLEN": ("queue length", 1000),
    "IFLA_LINKMODE": ("link mode", 0),
    "IFLA_GSO_MAX_SIZE": ("GSO size", 65536),
    "IFLA_GSO_MAX_SEGS": ("GSO segments", 65535),
    "IFLA_GRO_MAX_SIZE": ("GRO size", 65536),
}
_FOREVER = 0xFFFFFFFF
#: IFA_F_PERMANENT; and flags of IPv6 that come and go while the kernel looks for another host with the same address.
_KEPT, _PASSING = 0x80, 0x04 | 0x08 | 0x40
_ADDRESS_FLAGS = {0x01: "secondary", 0x20: "deprecated", 0x40: "tentative", 0x200: "no prefix route"}
_PERMANENT, _KERNELS = 0x80, 0x40  # NUD_PERMANENT, NUD_NOARP
_VALID = 0x02 | 0x04 | 0x08 | 0x10  # NUD_REACHABLE, STALE, DELAY, PROBE
#: The types of routes (rtm_type) and the scopes, by number, as `ip` names them.
_TYPES = ("unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit")
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
_HOST = 254
#: The length of the header of a message (struct nlmsghdr), and the kind RTM_NEWNEXTHOP.
_HEADER, _NEXT_HOP = 16, 104
_TABLES = {253: "default", 254: "main", 255: "local"}
#: Reported in words already, or counters and ages that change by themselves; RTA_PREF is about routers on a LAN.
_ROUTE_TOLD = {"RTA_TABLE", "RTA_DST", "RTA_OIF", "RTA_CACHEINFO", "RTA_PREF"}
_RULE_TOLD = {"FRA_TABLE", "FRA_PRIORITY", "FRA_PROTOCOL"}
#: FRA_SUPPRESS_PREFIXLEN of a rule that suppresses nothing.
_NOTHING = ("FRA_SUPPRESS_PREFIXLEN", 0xFFFFFFFF)


@dataclass(frozen=True)
class Link:
    """A link; `peer` is the index of a veth's other end (IFLA_LINK).

    `space` is the number with which this namespace refers to the one of that other end; None is this namespace itself.
    """

    name: str
    index: int
    kind: str
    up: bool
    address: str
    peer: int | None
    space: int | None = None


@dataclass(frozen=True)
class Network:
    """What was read of a namespace: its links by name, and lines of text by kind."""

    links: Mapping[str, Link]
    lines: Mapping[str, frozenset[str]]
    sysctls: Mapping[str, str]


def read(netns: Path, *, settings: bool = False) -> Network:
    """Read the namespace pinned at `netns`, with all its `settings` (see sysctls) if requested.

    Raises OSError, NetlinkError, UnreadError.
    """

    def work() -> Network:
        from pyroute2 import IPRoute

        with IPRoute() as netlink:
            links = [_link(each) for each in netlink.get_links()]
            names = {link.index: link.name for link, _ in links}
            lines = {
                "link": [text for _, text in links],
                "address": [_address(each, names) for each in netlink.get_addr()],
                "route": [_route(each, names) for each in netlink.get_routes()],
                "rule": [_rule(each) for each in netlink.get_rules()],
                "neighbour": [*_neighbours(netlink.get_neighbours(), names)],
                "queueing discipline": [_qdisc(each, names) for each in netlink.get_qdiscs()],
            }
        lines["neighbour"] += rare_redirects.neighbours_answered_for()
        lines["IPsec rule"] = rare_redirects.ipsec()
        lines["next hop"] = rare_redirects.next_hops()
        lines["IPVS service"] = rare_redirects.ipvs()
        values = sysctls.read_all() if settings else {}
        return Network({link.name: link for link, _ in links}, {k: frozenset(v) for k, v in lines.items()}, values)

    return run_inside(netns, work)


def line_of(kind: int, body: bytes, names: dict[int, str]) -> tuple[bool, str, str] | None:
    """Parse a change that netlink reports: whether it is there now, and its kind and line as `read` returns them.

    Return None for what does not affect where TCP goes: that a neighbour was looked up, or forgotten. `names` are those
    of the links by index; those of new links are added.
    """
    from pyroute2.netlink.rtnl import fibmsg, ifaddrmsg, ifinfmsg, ndmsg, rtmsg, tcmsg

    is_there = kind % 4 == 0  # RTM_NEW…, RTM_DEL…: four numbers a kind
    if kind - kind % 4 == _NEXT_HOP:
        return is_there, "next hop", "an object"
    classes = {
        16: ("link", ifinfmsg.ifinfmsg), 20: ("address", ifaddrmsg.ifaddrmsg), 24: ("route", rtmsg.rtmsg),
        28: ("neighbour", ndmsg.ndmsg), 32: ("rule", fibmsg.fibmsg), 36: ("queueing discipline", tcmsg.tcmsg),
        40: ("class of traffic", tcmsg.tcmsg), 44: ("filter of traffic", tcmsg.tcmsg),
    }  # fmt: skip
    word, of_kind = classes.get(kind - kind % 4, ("change", None))
    if of_kind is None:
        return is_there, word, f"of netlink's kind {kind}"
    message = of_kind(struct.pack("=IHHII", _HEADER + len(body), kind, 0, 0, 0) + body)
    message.decode()
    if word == "link":
        names[message["index"]] = message.get_attr("IFLA_IFNAME")
        return is_there, word, _link(message)[1]
    if word == "neighbour":
        lines = [*_neighbours([message], names)] if is_there else []
        return (is_there, word, lines[0]) if lines else None
    if word == "rule":
        return is_there, word, _rule(message)
    tell = {"address": _address, "route": _route}.get(word, _qdisc)
    return is_there, word, tell(message, names)


def _attributes(message: Any, *, but: set[str]) -> Iterator[str]:  # noqa: ANN401 - pyroute2 has no types
    for name, value in sorted(message["attrs"], key=lambda pair: str(pair[0])):
        if name not in but and (name, value) != _NOTHING:
            yield f"{name.partition('_')[2].lower() or name} {value}"


def _link(message: Any) -> tuple[Link, str]:  # noqa: ANN401
    flags, name = message["flags"], message.get_attr("IFLA_IFNAME")
    info = message.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") if info is not None else None) or ("loopback" if name == "lo" else "?")
    up = bool(flags & _UP and flags & _LOWER_UP)
    words = [f"{name} ({kind})", "up" if up else "down" if not flags & _UP else "without carrier"]
    if up:
        words.append(f"mtu {message.get_attr('IFLA_MTU')}")
    if flags & _NOARP:
        words.append("noarp")
    if message.get_attr("IFLA_MASTER") is not None:
        words.append(f"of link {message.get_attr('IFLA_MASTER')}")
    if message.get_attr("IFLA_PROTO_DOWN"):
        words.append("proto_down")
    words += [word for bit, word in _FLAGS.items() if flags & bit]
    if up:
        rest = flags & ~_FLAGS_TOLD & ~sum(_FLAGS) & 0xFFFF
        words += [f"flags {rest:#x}"] * bool(rest)
        for attribute, (word, plain) in _LINK_PLAIN.items():
            if (value := message.get_attr(attribute)) not in (None, plain):
                words.append(f"{word} {value}")
    address, peer = message.get_attr("IFLA_ADDRESS") or "", message.get_attr("IFLA_LINK")
    link = Link(name, message["index"], kind, up, address, peer, message.get_attr("IFLA_LINK_NETNSID"))
    return link, " ".join(words)


def _address(message: Any, names: Mapping[int, str]) -> str:  # noqa: ANN401
    local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    other = message.get_attr("IFA_ADDRESS")
    peer = f" peer {other}" if other != local else ""
    words = [f"{local}/{message['prefixlen']}{peer} dev {names.get(message['index'], message['index'])}"]
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    if message["family"] == socket.AF_INET6:
        flags &= ~_PASSING
    else:
        words += [f"scope {_SCOPES.get(message['scope'], message['scope'])}"] * (
            message["scope"] != (_HOST if str(local).startswith("127.") else 0)
        )
    words += [word for bit, word in _ADDRESS_FLAGS.items() if flags & bit]
    life = message.get_attr("IFA_CACHEINFO")
    if not flags & _KEPT or (life is not None and life["ifa_valid"] != _FOREVER):
        words.append("for a limited time")
    return " ".join(words)


def _route(message: Any, names: Mapping[int, str]) -> str:  # noqa: ANN401
    anything = "default" if message["family"] == socket.AF_INET else "default6"
    destination = message.get_attr("RTA_DST")
    number = message.get_attr("RTA_TABLE") or message["table"]
    kind = _TYPES[message["type"]] if message["type"] < len(_TYPES) else f"type {message['type']}"
    words = [kind, f"{destination}/{message['dst_len']}" if destination else anything]
    if (out := message.get_attr("RTA_OIF")) is not None:
        words.append(f"dev {names.get(out, out)}")
    words.append(f"table {_TABLES.get(number, number)}")
    if message["family"] == socket.AF_INET:
        words.append(f"scope {_SCOPES.get(message['scope'], message['scope'])}")
    words += [f"tos {message['tos']}"] * bool(message["tos"])
    return " ".join([*words, *_attributes(message, but=_ROUTE_TOLD)])


def _rule(message: Any) -> str:  # noqa: ANN401
    number = message.get_attr("FRA_TABLE") or message["table"]
    words = [f"{message.get_attr('FRA_PRIORITY') or 0}:", _family(message["family"])]
    words.append(f"table {_TABLES.get(number, number)}")
    plain = ("dst_len", "src_len", "tos")
    words += [f"{field} {message[field]}" for field in plain if message[field]]
    words += [f"action {message['action']}"] * (message["action"] != 1)
    words += [f"flags {message['flags']}"] * bool(message["flags"])
    return " ".join([*words, *_attributes(message, but=_RULE_TOLD)])


def _family(number: int) -> str:
    return {2: "ipv4", 10: "ipv6", 128: "ipv4 multicast", 129: "ipv6 multicast"}.get(number, f"family {number}")


def _neighbours(messages: Iterable[Any], names: Mapping[int, str]) -> Iterator[str]:
    """Return those that somebody set and, of those that the kernel found, which address has which hardware address."""
    for message in messages:
        where, state = names.get(message["ifindex"], message["ifindex"]), message["state"]
        address, hardware = message.get_attr("NDA_DST"), message.get_attr("NDA_LLADDR")
        if state & _KERNELS and (where == "lo" or _is_group(address, hardware)):
            continue  # the kernel's own: on lo and for groups, no lookup is needed
        if state & (_PERMANENT | _KERNELS):
            yield f"{address} at {hardware} dev {where}, set by hand"
        elif state & _VALID and message["family"] == socket.AF_INET:
            yield f"{address} at {hardware} dev {where}"


def _is_group(address: str | None, hardware: str | None) -> bool:
    """Report whether `hardware` is the fixed one of a multicast or broadcast address."""
    try:
        found = ip_address(address or "")
    except ValueError:
        return False
    if not found.is_multicast:
        return address == "255.255.255.255" and hardware == "ff:ff:ff:ff:ff:ff"
    tail = found.packed[-4:] if isinstance(found, IPv6Address) else bytes([found.packed[1] & 0x7F, *found.packed[2:]])
    head = b"\x33\x33" if isinstance(found, IPv6Address) else b"\x01\x00\x5e"
    return hardware == ":".join(f"{byte:02x}" for byte in head + tail)


def _qdisc(message: Any, names: Mapping[int, str]) -> str:  # noqa: ANN401
    return f"{message.get_attr('TCA_KIND')} dev {names.get(message['index'], message['index'])}"
