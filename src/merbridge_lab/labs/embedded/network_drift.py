"""The network between pods and node: the exact content of their namespaces, and the one list of allowed differences.

Compared are links, addresses, routes of all tables, rules of policy routing, neighbours, queueing disciplines and
IPsec; sysctl_drift.py compares the settings. Not compared: who added a route (its "proto"), and the kernel's counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from merbridge_lab.adapters.links import POD_END
from merbridge_lab.labs.embedded import topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from merbridge_lab.adapters.network_dump import Network
    from merbridge_lab.labs.embedded.topology import PodSpec

#: A line of Network.lines with its kind.
Line = tuple[str, str]


# -- what must be there ----------------------------------------------------------------------------------------------


def bare() -> set[Line]:
    """Return what every namespace has once its loopback is up."""
    routes = ("local 127.0.0.0/8", "local 127.0.0.1/32")
    return {
        ("link", "lo (loopback) up mtu 65536"),
        ("address", "127.0.0.1/8 dev lo"),
        *(("route", f"{route} dev lo table local scope host prefsrc 127.0.0.1") for route in routes),
        ("route", "broadcast 127.255.255.255/32 dev lo table local scope link prefsrc 127.0.0.1"),
        ("rule", "0: ipv4 table local"),
        ("rule", "32766: ipv4 table main"),
        ("rule", "32767: ipv4 table default"),
        ("queueing discipline", "noqueue dev lo"),
    }


def _end(link: str, address: str, other: str) -> set[Line]:
    return {
        ("link", f"{link} (veth) up mtu 1500"),
        ("address", f"{address}/32 dev {link}"),
        ("route", f"local {address}/32 dev {link} table local scope host prefsrc {address}"),
        ("route", f"unicast {other}/32 dev {link} table main scope link"),
        ("queueing discipline", f"noqueue dev {link}"),
    }


def pods_end(pod: PodSpec) -> set[Line]:
    """Return the properties of the link to the node, in the pod."""
    gateway = topology.NODE_ADDRESS
    default = f"unicast default dev {POD_END} table main scope global gateway {gateway}"
    return {*_end(POD_END, pod.ip, gateway), ("route", default)}


def nodes_end(pod: PodSpec) -> set[Line]:
    """Return the properties of the link to `pod`, in the node."""
    return _end(pod.veth, topology.NODE_ADDRESS, pod.ip)


# -- what may differ -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Allowance:
    """Lines that are optional, with the reason; `of` returns them, exactly, for what was read."""

    name: str
    reason: str
    of: Callable[[Network, Mapping[str, str]], set[Line]]


def _of_ipv6(network: Network, _neighbours: Mapping[str, str]) -> set[Line]:
    found = {
        ("address", "::1/128 dev lo"),
        ("route", "local ::1/128 dev lo table local priority 0"),
        ("route", "unicast ::1/128 dev lo table main priority 256"),
        ("rule", "0: ipv6 table local"),
        ("rule", "32766: ipv6 table main"),
    }
    for link in network.links.values():
        if link.kind == "veth" and (own := _link_local(link.address)):
            found |= {
                ("address", f"{own}/64 dev {link.name}"),
                ("route", f"unicast fe80::/64 dev {link.name} table main priority 256"),
                ("route", f"local {own}/128 dev {link.name} table local priority 0"),
                ("route", f"anycast fe80::/128 dev {link.name} table local priority 0"),
                ("route", f"multicast ff00::/8 dev {link.name} table local priority 256"),
                ("route", f"unicast ff00::/8 dev {link.name} table local priority 256"),
            }
    return found


def _link_local(hardware: str) -> str | None:
    """Return the address that the kernel derives from a hardware address (RFC 4291, appendix A)."""
    try:
        octets = bytes.fromhex(hardware.replace(":", ""))
    except ValueError:
        return None
    if len(octets) != 6:  # noqa: PLR2004 - an Ethernet address
        return None
    derived = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + derived))


_TUNNELS = {
    "tunl0": "ipip", "gre0": "gre", "gretap0": "gretap", "erspan0": "erspan", "ip_vti0": "vti", "sit0": "sit",
    "ip6_vti0": "vti6", "ip6tnl0": "ip6tnl", "ip6gre0": "ip6gre",
}  # fmt: skip


def _of_tunnels(_network: Network, _neighbours: Mapping[str, str]) -> set[Line]:
    found: set[Line] = set()
    for name, kind in _TUNNELS.items():
        found |= {("link", f"{name} ({kind}) down{noarp}") for noarp in ("", " noarp")}
        found.add(("queueing discipline", f"noop dev {name}"))
    return found


def _of_other_kernels(_network: Network, _neighbours: Mapping[str, str]) -> set[Line]:
    return {
        ("rule", "32767: ipv4 multicast table default"),
        ("rule", "32767: ipv6 multicast table main"),
        ("route", "broadcast 127.0.0.0/32 dev lo table local scope link prefsrc 127.0.0.1"),
    }


def _of_neighbours(_network: Network, neighbours: Mapping[str, str]) -> set[Line]:
    return {("neighbour", f"{told} dev {link}") for link, told in neighbours.items()}


MAY_DIFFER = (
    Allowance("IPv6", "where it is on, the kernel gives each link an address and routes; no pod uses them", _of_ipv6),
    Allowance(
        "tunnels at rest", "with their modules loaded, every namespace has them from the start, down", _of_tunnels
    ),
    Allowance("other kernels", "some have multicast routing, older ones a broadcast route more", _of_other_kernels),
    Allowance("learnt neighbours", "the kernel asks for the other end's hardware address when needed", _of_neighbours),
)


# -- comparing -------------------------------------------------------------------------------------------------------


class Compared(NamedTuple):
    """What is missing, and what is there in addition."""

    missing: tuple[Line, ...]
    extra: tuple[Line, ...]


def compare(found: Network, wanted: set[Line], *, neighbours: Mapping[str, str], also: Iterable[Line] = ()) -> Compared:
    """Compare what was read with what must be there.

    `neighbours` maps each link to its other end ("ADDRESS at HARDWARE"). The lines in `also` are optional.
    """
    there = {(kind, line) for kind, lines in found.lines.items() for line in lines}
    may = {*also}.union(*(each.of(found, neighbours) for each in MAY_DIFFER))
    return Compared(tuple(sorted(wanted - there)), tuple(sorted(there - wanted - may)))


def altered(compared: Compared) -> tuple[Compared, list[str]]:
    """Separate what was only altered from what is missing or foreign; describe each alteration in a few words."""
    told = {
        (missing, extra): f"the {kind} {line} is {extra[1][len(line) + 1 :]}"
        for missing in compared.missing
        for extra in compared.extra
        for kind, line in [missing]
        if extra[0] == kind and extra[1].startswith(f"{line} ")
    }
    gone, new = ({pair[side] for pair in told} for side in (0, 1))
    left = Compared(
        tuple(each for each in compared.missing if each not in gone),
        tuple(each for each in compared.extra if each not in new),
    )
    return left, list(told.values())


def stranger(where: str, line: Line) -> str:
    """Describe a line that should not be there."""
    article = "an" if line[0][0] in "aI" else "a"
    return f"{where} has {article} {line[0]} that is not merlab's: {line[1]}"
