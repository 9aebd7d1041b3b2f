"""Istio's annotations as Python reads them, the lists that the programs get, and the model of the rules."""

from __future__ import annotations

import random
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from tests import annotated_pods
from tests.annotated_pods import TRAFFIC
from tests.iptables_model import Nat, Packet

from merbridge_lab.dataplane import Interception, Legs, abi, endpoints, interception_lists, istio_annotations
from merbridge_lab.dataplane.endpoints import Endpoint, Sidecar, pod_entry, pod_flags, served, sidecar_of
from merbridge_lab.dataplane.pins import number
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import rule_templates


def parse(**annotations: str) -> Interception:
    return istio_annotations.parse({TRAFFIC + name: text for name, text in annotations.items()})


def test_without_annotations_everything_is_intercepted_and_no_list_is_looked_at():
    found = istio_annotations.parse({"app": "sleep"})
    assert found == Interception()
    known = abi.constants()
    assert interception_lists.flags(found) == known["POD_ALL_RANGES"] | known["POD_ALL_INBOUND"]
    assert interception_lists.entries(found, 7) == {"ports": {}, "ranges": {}}
    assert parse(includeOutboundIPRanges="*", includeInboundPorts="*", excludeOutboundPorts="") == found


def test_lists_are_read_in_their_order():
    found = parse(
        includeOutboundIPRanges="10.1.2.3/8,2001:db8::/32",
        excludeOutboundIPRanges="10.96.0.0/12",
        includeOutboundPorts="443, 80",
        excludeOutboundPorts="22",
        includeInboundPorts="5000",
        excludeInboundPorts="9000,15020",
        excludeInterfaces="eth1",
    )
    assert found == Interception(
        outbound_ranges=(ip_network("10.0.0.0/8"),),
        excluded_outbound_ranges=(ip_network("10.96.0.0/12"),),
        outbound_ports=(443, 80),
        excluded_outbound_ports=(22,),
        inbound_ports=(5000,),
        excluded_inbound_ports=(9000, 15020),
        excluded_interfaces=("eth1",),
    )
    assert found.spared_inbound_ports == (15090, 15021, 9000, 15020)
    assert Interception().spared_inbound_ports == (15090, 15021, 15020)


def test_empty_lists_are_not_the_same_as_none():
    found = parse(includeOutboundIPRanges="", includeInboundPorts="")
    assert (found.outbound_ranges, found.inbound_ports) == ((), ())
    assert (found.lists_outbound, found.lists_inbound) == (True, True)


@pytest.mark.parametrize(("ranges", "loopback"), [("127.0.0.0/8", True), ("::1/128", True), ("0.0.0.0/0", False)])
def test_the_loopback_among_the_ranges(ranges, loopback):
    assert parse(includeOutboundIPRanges=ranges).with_loopback is loopback


@pytest.mark.parametrize(
    ("name", "text", "bad"),
    [
        ("excludeOutboundPorts", "80,*", "*"),
        ("includeInboundPorts", "80,", ""),
        ("excludeInboundPorts", "65536", "65536"),
        ("includeOutboundPorts", "080", "080"),
        ("excludeOutboundPorts", "8000:8100", "8000:8100"),
        ("includeOutboundIPRanges", "10.0.0.0", "10.0.0.0"),
        ("includeOutboundIPRanges", "10.0.0.0/8,*", "*"),
        ("excludeOutboundIPRanges", "10.0.0.0/33", "10.0.0.0/33"),
        ("excludeOutboundIPRanges", "10.0.0.0/255.0.0.0", "10.0.0.0/255.0.0.0"),
        ("excludeOutboundIPRanges", "10.0.0.0/8, 11.0.0.0/8", " 11.0.0.0/8"),
    ],
)
def test_what_istio_refuses_is_left_to_the_rules_with_the_reason(name, text, bad):
    kind = "a port" if "Ports" in name else "a range of addresses"
    said = f"the annotation {TRAFFIC}{name} holds {bad!r}, which is not {kind}"
    with pytest.raises(ValueError, match="which is not") as refused:
        parse(**{name: text})
    assert str(refused.value) == istio_annotations.unsupported({TRAFFIC + name: text}) == said


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (TRAFFIC + "excludeInterfaces", "eth1"),
        (TRAFFIC + "kubevirtInterfaces", "net1"),
        ("istio.io/reroute-virtual-interfaces", "net1"),
        ("sidecar.istio.io/interceptionMode", "TPROXY"),
        ("status.sidecar.istio.io/port", "0"),
    ],
)
def test_what_ebpf_cannot_follow_is_left_to_the_rules_with_the_reason(name, text):
    assert istio_annotations.unsupported({name: text}) == f"eBPF does not support the annotation {name}: {text!r}"


def test_what_changes_nothing_is_supported():
    harmless = {"sidecar.istio.io/interceptionMode": "REDIRECT", "status.sidecar.istio.io/port": "15020"}
    assert istio_annotations.unsupported(harmless | {TRAFFIC + "excludeInterfaces": ""}) == ""


def test_the_longest_range_has_the_lists_of_all_around_it():
    """A trie finds one entry: the rules look at each range."""
    known, layout = abi.constants(), abi.layouts()["range"]
    found = parse(includeOutboundIPRanges="10.0.0.0/8,10.1.2.0/24", excludeOutboundIPRanges="10.1.0.0/16,10.1.2.0/24")
    lists = {
        layout.unpack(key)["prefix"] - 64: number(value)
        for key, value in interception_lists.entries(found, 1 << 33)["ranges"].items()
    }
    both = known["EXCLUDED_OUTBOUND"] | known["INCLUDED_OUTBOUND"]
    assert lists == {8: known["INCLUDED_OUTBOUND"], 16: both, 24: both}
    assert {layout.unpack(key)["netns_high"] for key in interception_lists.entries(found, 1 << 33)["ranges"]} == {2}


def test_a_port_of_several_lists_has_one_entry():
    found = parse(
        includeOutboundPorts="80", excludeOutboundPorts="80", includeInboundPorts="80", excludeInboundPorts="80"
    )
    (value,) = interception_lists.entries(found, 7)["ports"].values()
    assert number(value) == 15


def test_the_model_of_the_rules_knows_every_rule_of_ours():
    """And decides by hand-made cases as iptables does; tests/kernel compares it with the kernel."""
    nat = Nat(rule_templates.pod_rules())
    app, sidecar = Packet("10.1.2.3", 80, out="eth0"), Packet("10.1.2.3", 80, out="eth0", uid=1337, gid=1337)
    assert nat.port("OUTPUT", app) == 15001
    assert nat.port("OUTPUT", sidecar) is None
    assert nat.port("OUTPUT", Packet("10.0.0.1", 80, out="lo", uid=1337, gid=1337)) == 15006
    assert nat.port("OUTPUT", Packet("10.0.0.1", 15008, out="lo", uid=1337, gid=1337)) is None
    assert nat.port("OUTPUT", Packet("127.0.0.1", 80, src="127.0.0.1", out="lo")) is None
    assert nat.port("PREROUTING", Packet("10.0.0.1", 80, into="eth0")) == 15006
    assert nat.port("PREROUTING", Packet("10.0.0.1", 15021, into="eth0")) is None
    with pytest.raises(KeyError):
        Nat("*nat\n:OUTPUT ACCEPT\n-A OUTPUT --odd 1 -j RETURN\nCOMMIT\n").port("OUTPUT", app)


def test_random_destinations_lie_at_the_edges_of_ranges():
    rng = random.Random(1)  # noqa: S311 - no secret
    block = ip_network("10.96.0.0/12")
    made = {TRAFFIC + "excludeOutboundIPRanges": str(block)}
    ips = {annotated_pods.destination(rng, made, ("192.0.2.1",)).ip for _ in range(300)}
    first, last = block[0], block[-1]
    assert {str(each) for each in (first, last, first - 1, last + 1)} | {"192.0.2.1"} <= ips
    assert any(ip_address(each) not in block for each in ips)


# -- endpoints --------------------------------------------------------------------------------------------------------

POD = Endpoint("", "sleep", "1", "10.0.0.1", Path("/netns"), Path("/proc"), Sidecar(7, 1500, 1501))


def test_an_entry_has_the_sidecars_own_user_and_the_lists():
    endpoint = Endpoint(*list(vars(POD).values())[:7], Legs(True, False, False, ""), parse(excludeInboundPorts="80"))
    entry, known = abi.layouts()["pod"].unpack(pod_entry(endpoint)), abi.constants()
    assert (entry["uid"], entry["gid"]) == (1500, 1501)
    assert entry["flags"] == pod_flags(endpoint)
    assert entry["flags"] == known["POD_ALL_RANGES"] | known["POD_ALL_INBOUND"] | known["POD_INBOUND_LISTS"]


def test_no_process_has_the_user_of_a_sidecar_that_is_not_known():
    entry = abi.layouts()["pod"].unpack(pod_entry(Endpoint(*list(vars(POD).values())[:6])))
    assert entry["uid"] == entry["gid"] == 2**32 - 1


def test_what_is_left_to_the_rules_is_not_served():
    left = Endpoint(*list(vars(POD).values())[:7], left_to_rules="a reason")
    assert served([POD, left]) == [POD]


def status(**ids: str) -> str:
    lines = {"Uid": "1500\t1500\t1500\t1500", "Gid": "1501\t1501\t1501\t1501"} | ids
    return "Name:\tenvoy\n" + "".join(f"{name}:\t{text}\n" for name, text in lines.items() if text)


@pytest.fixture
def proc(monkeypatch):
    """The two files that are read."""
    files = {"/proc/self/uid_map": "         0          0 4294967295\n", "/proc/7/status": status()}

    def read(path: Path) -> str:
        if str(path) not in files:
            raise ProcessLookupError(3, "No such process")
        return files[str(path)]

    monkeypatch.setattr(endpoints, "read_text", read)
    return files


@pytest.mark.usefixtures("proc")
def test_a_sidecars_user_is_read_from_its_process():
    assert sidecar_of(7) == Sidecar(7, 1500, 1501)


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("/proc/7/status", None, "the process cannot be read: No such process"),
        ("/proc/7/status", status(Uid="1500\t0\t1500\t0"), "its uids are 0, 1500, not one"),
        ("/proc/7/status", status(Gid="1\t1\t1\t2"), "its gids are 1, 2, not one"),
        ("/proc/7/status", status(Gid=""), "its gids are not in its status, not one"),
        (
            "/proc/self/uid_map",
            "0 100000 65536\n",
            "merlab runs in a user namespace, where the node's users have other numbers",
        ),
    ],
)
def test_a_sidecar_whose_user_is_not_known_is_refused_with_the_reason(proc, file, text, why):
    if text is None:
        del proc[file]
    else:
        proc[file] = text
    with pytest.raises(LabError) as refused:
        sidecar_of(7)
    assert refused.value.what == f"the user of the sidecar (pid 7) is not known: {why}"
