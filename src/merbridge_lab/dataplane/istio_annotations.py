"""Which connections of a pod its sidecar handles, by Istio's annotations: parsed here, and nowhere else."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab.istio_facts import AGENT_PORT, HEALTH_PORT, STATS_PORT

if TYPE_CHECKING:
    from collections.abc import Mapping

_TRAFFIC = "traffic.sidecar.istio.io/"
#: Annotations that change the rules in a way that eBPF cannot follow, and the only values without that effect.
_UNSUPPORTED = {
    "sidecar.istio.io/interceptionMode": ("REDIRECT",),
    "status.sidecar.istio.io/port": (str(AGENT_PORT),),
    "istio.io/reroute-virtual-interfaces": ("",),
    _TRAFFIC + "kubevirtInterfaces": ("",),
    _TRAFFIC + "excludeInterfaces": ("",),
}
#: As Istio's: an address and the length of its prefix.
_RANGE = re.compile(r"[0-9a-fA-F.:]+/(0|[1-9]\d*)")
_LAST_PORT = 65535

Range = ipaddress.IPv4Network


@dataclass(frozen=True)
class Interception:
    """What a sidecar handles of a pod's connections; by default all, as Istio's rules have it.

    `outbound_ranges` and `inbound_ports` are None for all. What the app dials to one of `outbound_ports` is handled
    outside of the ranges, too. What is excluded wins. Lists are in the order of the annotation. `with_loopback`: the
    ranges name the loopback, so the rules also redirect what the app dials in its own pod; eBPF leaves that to them.
    `excluded_interfaces` is for the rules alone. IPv6 ranges are left out: eBPF handles IPv4.

    `routes` is no annotation, but what the kernel asks before the rules: the ranges with a route of their own, and
    whether that leads somewhere; empty if every address has one. What has none is never handled: connect() fails.
    """

    outbound_ranges: tuple[Range, ...] | None = None
    excluded_outbound_ranges: tuple[Range, ...] = ()
    outbound_ports: tuple[int, ...] = ()
    excluded_outbound_ports: tuple[int, ...] = ()
    inbound_ports: tuple[int, ...] | None = None
    excluded_inbound_ports: tuple[int, ...] = ()
    with_loopback: bool = False
    excluded_interfaces: tuple[str, ...] = ()
    routes: tuple[tuple[Range, bool], ...] = ()

    @property
    def spared_inbound_ports(self) -> tuple[int, ...]:
        """Return the ports that the rules of a pod spare if all are handled, in the order of Istio's injection."""
        own = (STATS_PORT, HEALTH_PORT)
        ports = self.excluded_inbound_ports
        return (*own, *ports) if AGENT_PORT in ports else (*own, *ports, AGENT_PORT)

    @property
    def lists_outbound(self) -> bool:
        """Report whether ports or ranges decide about what the app dials."""
        excluded = self.excluded_outbound_ranges or self.excluded_outbound_ports or self.routes
        return self.outbound_ranges is not None or bool(excluded)

    @property
    def lists_inbound(self) -> bool:
        """Report whether ports decide about what arrives."""
        return self.inbound_ports is not None or bool(self.excluded_inbound_ports)


def parse(annotations: Mapping[str, str]) -> Interception:
    """Return what Istio's injection makes of a pod's annotations. Raise ValueError, with a sentence, as it would."""

    def value(name: str) -> str | None:
        return annotations.get(_TRAFFIC + name)

    def ports(name: str) -> tuple[int, ...]:
        return _ports(_TRAFFIC + name, value(name) or "")

    included, inbound = value("includeOutboundIPRanges"), value("includeInboundPorts")
    ranges, with_loopback = (
        (None, False) if included in (None, "*") else _ranges(_TRAFFIC + "includeOutboundIPRanges", included or "")
    )
    return Interception(
        outbound_ranges=ranges,
        excluded_outbound_ranges=_ranges(_TRAFFIC + "excludeOutboundIPRanges", value("excludeOutboundIPRanges") or "")[
            0
        ],
        outbound_ports=ports("includeOutboundPorts"),
        excluded_outbound_ports=ports("excludeOutboundPorts"),
        inbound_ports=None if inbound in (None, "*") else ports("includeInboundPorts"),
        excluded_inbound_ports=ports("excludeInboundPorts"),
        with_loopback=with_loopback,
        excluded_interfaces=tuple(filter(None, (value("excludeInterfaces") or "").split(","))),
    )


def unsupported(annotations: Mapping[str, str]) -> str:
    """Describe the first annotation for which eBPF cannot decide as the rules do; "" if there is none."""
    for name, harmless in _UNSUPPORTED.items():
        if annotations.get(name, harmless[0]) not in harmless:
            return f"eBPF does not support the annotation {name}: {annotations[name]!r}"
    try:
        parse(annotations)
    except ValueError as wrong:
        return str(wrong)
    return ""


def _ports(name: str, text: str) -> tuple[int, ...]:
    found = [each.strip() for each in text.split(",")] if text.strip() else []
    for each in found:
        if not (each.isascii() and each.isdecimal() and str(int(each)) == each and int(each) <= _LAST_PORT):
            raise ValueError(f"the annotation {name} holds {each!r}, which is not a port")
    return tuple(map(int, found))


def _ranges(name: str, text: str) -> tuple[tuple[Range, ...], bool]:
    """Return the IPv4 ranges, and whether one, of IPv4 or IPv6, begins with an address of the loopback."""
    found: list[Range] = []
    with_loopback = False
    for each in text.split(",") if text else ():
        network = _range(each)
        if network is None:
            raise ValueError(f"the annotation {name} holds {each!r}, which is not a range of addresses")
        with_loopback = with_loopback or ipaddress.ip_address(each.partition("/")[0]).is_loopback
        if isinstance(network, Range):
            found.append(network)
    return tuple(found), with_loopback


def _range(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    if not _RANGE.fullmatch(text):
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
