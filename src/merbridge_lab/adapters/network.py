"""All that decides where a network namespace sends TCP, read at once: one dump a kind, by netlink.

Each thing found is one line of text, in which everything stands that tells it from another; so two namespaces are
alike when their lines are the same, and a line that is not expected names what it is.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters.netns import run_inside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_UP, _LOWER_UP, _NOARP = 0x1, 0x10000, 0x80
_PERMANENT, _KERNELS = 0x80, 0x40  # NUD_PERMANENT, NUD_NOARP
_NTF_PROXY = 0x08
_VALID = 0x02 | 0x04 | 0x08 | 0x10  # NUD_REACHABLE, STALE, DELAY, PROBE
#: The types of routes (rtm_type) and the scopes, by number, as `ip` names them.
_TYPES = ("unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit")
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
_TABLES = {253: "default", 254: "main", 255: "local"}
#: Told in words already, or counters and ages that change by themselves; RTA_PREF is about routers on a LAN.
_ROUTE_TOLD = {"RTA_TABLE", "RTA_DST", "RTA_OIF", "RTA_CACHEINFO", "RTA_PREF"}
_RULE_TOLD = {"FRA_TABLE", "FRA_PRIORITY", "FRA_PROTOCOL"}
#: FRA_SUPPRESS_PREFIXLEN of a rule that suppresses nothing.
_NOTHING = ("FRA_SUPPRESS_PREFIXLEN", 0xFFFFFFFF)

_RTM_GETNEIGH = 30
_NETLINK_XFRM = 6
_XFRM_GET = {"state": 0x12, "policy": 0x15}  # XFRM_MSG_GETSA, XFRM_MSG_GETPOLICY
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR, _DONE = 2, 3


@dataclass(frozen=True)
class Link:
    """A link; `peer` is the index of a veth's other end (IFLA_LINK), in whatever namespace that is."""

    name: str
    index: int
    kind: str
    up: bool
    address: str
    peer: int | None


@dataclass(frozen=True)
class Network:
    """What was read of a namespace: its links by name, and lines of text by kind."""

    links: Mapping[str, Link]
    lines: Mapping[str, frozenset[str]]
    sysctls: Mapping[str, str | None]


def read(netns: Path, sysctls: Iterable[str] = ()) -> Network:
    """Read what there is in the namespace pinned at `netns`, and `sysctls` (paths below /proc/sys/net).

    A setting that the kernel does not have is None. Raises OSError, NetlinkError.
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
        lines["neighbour"] += [f"proxy {number}" for number in range(_proxies())]
        lines["IPsec rule"] = [f"{kind} {number}" for kind in _XFRM_GET for number in range(_xfrm(kind))]
        values = {name: _value(name) for name in sysctls}
        return Network({link.name: link for link, _ in links}, {k: frozenset(v) for k, v in lines.items()}, values)

    return run_inside(netns, work)


def _value(name: str) -> str | None:
    try:
        return " ".join(Path("/proc/sys/net", name).read_text().split())
    except FileNotFoundError:
        return None


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
    link = Link(name, message["index"], kind, up, message.get_attr("IFLA_ADDRESS") or "", message.get_attr("IFLA_LINK"))
    return link, " ".join(words)


def _address(message: Any, names: Mapping[int, str]) -> str:  # noqa: ANN401
    local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    other = message.get_attr("IFA_ADDRESS")
    peer = f" peer {other}" if other != local else ""
    return f"{local}/{message['prefixlen']}{peer} dev {names.get(message['index'], message['index'])}"


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
    """Tell those that somebody set, and of those that the kernel found which address has which hardware address."""
    for message in messages:
        where, state = names.get(message["ifindex"], message["ifindex"]), message["state"]
        address, hardware = message.get_attr("NDA_DST"), message.get_attr("NDA_LLADDR")
        if state & _KERNELS and (where == "lo" or _is_group(address, hardware)):
            continue  # the kernel's own: on lo and for groups nobody need be asked
        if state & (_PERMANENT | _KERNELS):
            yield f"{address} at {hardware} dev {where}, set by hand"
        elif state & _VALID and message["family"] == socket.AF_INET:
            yield f"{address} at {hardware} dev {where}"


def _is_group(address: str | None, hardware: str | None) -> bool:
    """Whether `hardware` is what a multicast or broadcast address always has."""
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


def _proxies() -> int:
    """Count the addresses that are answered for in ARP or neighbour discovery; pyroute2 cannot ask for these."""
    return _count(socket.NETLINK_ROUTE, _RTM_GETNEIGH, struct.pack("=BBHiHBB", 0, 0, 0, 0, 0, _NTF_PROXY, 0))


def _xfrm(kind: str) -> int:
    """Count the IPsec policies or states here; a kernel that has no such socket can have been given none by it."""
    try:
        return _count(_NETLINK_XFRM, _XFRM_GET[kind], b"")
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            return 0
        raise


def _count(protocol: int, request: int, body: bytes) -> int:
    """Count the messages of a dump. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(2)
        sock.send(struct.pack("=LHHLL", 16 + len(body), request, _DUMP, 1, 0) + body)
        found = 0
        while True:
            answer = sock.recv(65536)
            while answer:
                length, kind = struct.unpack_from("=LH", answer)
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    (number,) = struct.unpack_from("=i", answer, 16)
                    raise OSError(-number, os.strerror(-number))
                found += 1
                answer = answer[(length + 3) & ~3 :]
