"""Which addresses have a route: the text of the kernel's table, and what the dataplane makes of it."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from merbridge_lab.adapters import routes
from merbridge_lab.dataplane import abi, interception_lists
from merbridge_lab.dataplane.istio_annotations import Interception, parse
from merbridge_lab.dataplane.pins import number

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"
#: Lines as Linux 6.18 writes them.
DEFAULT = "eth0\t00000000\t0101F00A\t0003\t0\t0\t0\t00000000\t0\t0\t0"
NEAR = "eth0\t0001F00A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0"
UNREACHABLE = "*\t000200C0\t00000000\t0201\t0\t0\t0\t00FFFFFF\t0\t0\t0"
BLACKHOLE = "*\t006433C6\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0"
BETTER = "eth0\t000200C0\t0101F00A\t0003\t0\t0\t5\t00FFFFFF\t0\t0\t0"

ALL = IPv4Network("0.0.0.0/0")


def text(*lines: str) -> str:
    return "".join(f"{line}\n" for line in (HEAD, *lines))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((DEFAULT, NEAR), {}),
        ((DEFAULT, UNREACHABLE), {ALL: True, IPv4Network("192.0.2.0/24"): False}),
        ((DEFAULT, BLACKHOLE), {ALL: True, IPv4Network("198.51.100.0/24"): False}),
        ((NEAR,), {ALL: False, IPv4Network("10.240.1.0/24"): True}),
        ((), {ALL: False}),
        ((DEFAULT, BETTER, UNREACHABLE.replace("\t0\t0\t0\t00F", "\t0\t0\t9\t00F")), {}),
    ],
    ids=["default", "unreachable", "blackhole", "no default", "none", "lower metric"],
)
def test_what_the_kernel_shows(lines, expected):
    assert routes.parse(text(*lines)) == expected


def test_the_most_specific_route_decides_about_a_range_of_an_annotation():
    annotated = parse({"traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.1.2.0/24"})
    told = ((ALL, False), (IPv4Network("10.1.0.0/16"), True), (IPv4Network("10.1.3.0/24"), False))
    interception = Interception(excluded_outbound_ranges=annotated.excluded_outbound_ranges, routes=told)
    known, layout = abi.constants(), abi.layouts()["range"]
    held = {
        layout.unpack(key)["prefix"] - 64: number(value)
        for key, value in interception_lists.entries(interception, 1)["ranges"].items()
        if layout.unpack(key)["prefix"] - 64 != 24
    }
    assert held == {0: known["EXCLUDED_OUTBOUND"], 16: 0}
    assert interception_lists.flags(interception) & known["POD_OUTBOUND_LISTS"]
    assert not interception_lists.flags(Interception()) & known["POD_OUTBOUND_LISTS"]
