"""The lists of a pod in the kernel: which ports and ranges of addresses are intercepted, by its Interception."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_maps
from merbridge_lab.dataplane import abi
from merbridge_lab.dataplane.pins import number, u32, u64

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from merbridge_lab.dataplane.istio_annotations import Interception, Range
    from merbridge_lab.dataplane.pins import Pins

#: The maps, and the structures of their keys.
_MAPS = {"ports": "port", "ranges": "range"}
#: How many bits of a key come before the address: the cookie.
_COOKIE_BITS = 64

Entries = dict[bytes, bytes]


def flags(interception: Interception) -> int:
    """Return the flags of a pod that tell the programs whether to look at lists."""
    known = abi.constants()
    return (
        (interception.outbound_ranges is None) * known["POD_ALL_RANGES"]
        | interception.lists_outbound * known["POD_OUTBOUND_LISTS"]
        | (interception.inbound_ports is None) * known["POD_ALL_INBOUND"]
        | interception.lists_inbound * known["POD_INBOUND_LISTS"]
    )


def place(cookie: int, pod_flags: int) -> bytes:
    """Return what `pod_ips` holds for the address of a pod."""
    return abi.layouts()["place"].pack(netns=cookie, flags=pod_flags)


def entries(interception: Interception, cookie: int) -> dict[str, Entries]:
    """Return what the maps hold for a pod, by the name of the map."""
    known, layouts = abi.constants(), abi.layouts()
    ports: dict[int, int] = {}
    for name, numbers in (
        ("EXCLUDED_OUTBOUND", interception.excluded_outbound_ports),
        ("INCLUDED_OUTBOUND", interception.outbound_ports),
        ("EXCLUDED_INBOUND", interception.excluded_inbound_ports),
        ("INCLUDED_INBOUND", interception.inbound_ports or ()),
    ):
        for port in numbers:
            ports[port] = ports.get(port, 0) | known[name]
    listed = {
        "EXCLUDED_OUTBOUND": interception.excluded_outbound_ranges,
        "INCLUDED_OUTBOUND": interception.outbound_ranges or (),
    }
    routes = dict(interception.routes)
    ranges = {
        each: sum(known[name] for name, others in listed.items() if any(map(each.subnet_of, others)))
        for others in (*listed.values(), routes)
        for each in others
    }
    for each in ranges:
        if not _leads_somewhere(each, routes):
            ranges[each] |= known["EXCLUDED_OUTBOUND"]
    return {
        "ports": {layouts["port"].pack(netns=cookie, port=port): u32(lists) for port, lists in ports.items()},
        "ranges": {_range_key(each, cookie): u32(lists) for each, lists in ranges.items()},
    }


def _leads_somewhere(network: Range, routes: Mapping[Range, bool]) -> bool:
    """Report whether the most specific of the routes around a range leads somewhere, as the kernel looks it up."""
    around = [each for each in routes if network.subnet_of(each)]
    return routes[max(around, key=lambda each: each.prefixlen)] if around else True


def _range_key(network: Range, cookie: int) -> bytes:
    low, high = struct.unpack("=II", u64(cookie))
    (ip4,) = struct.unpack("=I", network.network_address.packed)
    return abi.layouts()["range"].pack(prefix=_COOKIE_BITS + network.prefixlen, netns_low=low, netns_high=high, ip4=ip4)


def _present(pins: Pins, name: str) -> dict[int, Entries]:
    """Return what a map holds, by the cookie of the pod. Raises OSError."""
    found: dict[int, Entries] = {}
    layout = abi.layouts()[_MAPS[name]]
    at = layout.offset("netns" if name == "ports" else "netns_low")  # all entries of all pods: only this is looked at
    with pins.open_map(name) as fd:
        for key, value in bpf_maps.entries(fd, layout.size, 4).items():
            found.setdefault(number(key[at : at + 8]), {})[key] = value
    return found


def write(pins: Pins, cookie: int, interception: Interception) -> None:
    """Make the maps hold exactly these lists for a pod, by the cookie of its namespace. Raises OSError."""
    for name in _MAPS:
        right, there = entries(interception, cookie)[name], _present(pins, name).get(cookie, {})
        with pins.open_map(name) as fd:
            for key, value in right.items():
                if there.get(key) != value:
                    bpf_maps.update(fd, key, value)
            for key in there.keys() - right.keys():
                with contextlib.suppress(OSError):
                    bpf_maps.delete(fd, key)


def remove(pins: Pins, cookie: int) -> None:
    """Remove the lists of a pod, by the cookie of its namespace. Raises OSError."""
    for name in _MAPS:
        there = _present(pins, name).get(cookie, {})
        with pins.open_map(name) as fd:
            for key in there:
                with contextlib.suppress(OSError):
                    bpf_maps.delete(fd, key)


def cookies(pins: Pins) -> set[int]:
    """Return the cookies of the namespaces that have lists. Raises OSError."""
    return {cookie for name in _MAPS for cookie in _present(pins, name)}


def problems(pins: Pins, name: str, interception: Interception, cookie: int) -> list[str]:
    """Describe how the lists of the pod `name` differ from what they should be. Raises OSError."""
    right = entries(interception, cookie)
    return [
        f"the map {each} holds other exclusions for pod {name} than its annotations and routes demand"
        for each in _MAPS
        if _present(pins, each).get(cookie, {}) != right[each]
    ]


def strangers(pins: Pins, cookies: Collection[int]) -> list[str]:
    """Describe the lists of network namespaces that are of no pod. Raises OSError."""
    return [
        f"the map {each} holds exclusions for the network namespace {cookie}, which is of no pod"
        for each in _MAPS
        for cookie in _present(pins, each)
        if cookie not in cookies
    ]
