"""Whether a pod's rules are those that its annotations imply: rules as saved, and what values of the mesh change."""

import itertools
import random
from pathlib import Path

import pytest
from tests import annotated_pods
from tests.annotated_pods import TRAFFIC

from merbridge_lab import ruleset
from merbridge_lab.dataplane import istio_rules

CAPTURED = Path(__file__).parents[1] / "captured"


def nat(text):
    """Return the rules of nat by chain, as the agent reads them."""
    found = {}
    for rule in ruleset.parse(text):
        if rule.table == "nat":
            found.setdefault(rule.chain, []).append(rule.spec)
    return found


def of(**annotations):
    return {TRAFFIC + name: value for name, value in annotations.items()}


PLAIN = istio_rules.text({})


def test_rules_that_were_saved_in_a_pod_are_those_of_no_annotation():
    found = nat((CAPTURED / "sleep.nft.rules").read_text())
    assert found
    assert istio_rules.difference(found, {}) == ""
    assert istio_rules.difference(found, of(excludeInboundPorts="9000")) != ""


def test_each_pod_has_its_own_rules_and_no_others():
    rng = random.Random(14)  # noqa: S311 - no secret
    pods = [{}, *(annotated_pods.annotations(rng) for _ in range(60))]
    texts = [istio_rules.text(each) for each in pods]
    for pod, text in zip(pods, texts, strict=True):
        assert istio_rules.difference(nat(text), pod) == "", pod
    others = 0
    for (pod, text), (_, other) in itertools.pairwise(zip(pods, texts, strict=True)):
        if text != other:
            others += istio_rules.difference(nat(other), pod) != ""
    assert others > 50


MESH_WIDE = {
    "an excluded port of the mesh": (
        of(excludeInboundPorts="9000"), "ISTIO_INBOUND has -p tcp -m tcp --dport 9000 -j RETURN",
    ),
    "ports of the mesh": (
        of(includeInboundPorts="80"), "ISTIO_INBOUND has not -p tcp -m tcp --dport 15020 -j RETURN",
    ),
    "no inbound port": (of(includeInboundPorts=""), "PREROUTING does not lead to ISTIO_INBOUND"),
    "ranges of the mesh": (
        of(includeOutboundIPRanges="10.0.0.0/8"), "ISTIO_OUTPUT has -d 10.0.0.0/8 -j ISTIO_REDIRECT",
    ),
    "excluded ranges": (
        of(excludeOutboundIPRanges="10.96.0.0/12"), "ISTIO_OUTPUT has -d 10.96.0.0/12 -j RETURN",
    ),
    "an excluded port outbound": (
        of(excludeOutboundPorts="3306"), "ISTIO_OUTPUT has -p tcp -m tcp --dport 3306 -j RETURN",
    ),
    "a spared interface": (of(excludeInterfaces="eth1"), "PREROUTING has -i eth1 -j RETURN"),
}  # fmt: skip


@pytest.mark.parametrize("what", MESH_WIDE)
def test_what_the_mesh_adds_to_the_rules_alone_is_a_difference(what):
    annotations, told = MESH_WIDE[what]
    assert istio_rules.difference(nat(istio_rules.text(annotations)), {}) == told
    assert istio_rules.difference(nat(PLAIN), annotations) != ""


def test_the_loopback_counts():
    ranges = of(includeOutboundIPRanges="10.0.0.0/8")
    lines = [line for line in istio_rules.text(ranges).splitlines() if "-o lo -m owner !" not in line]
    assert istio_rules.difference(nat("\n".join(lines)), ranges) == (
        "ISTIO_OUTPUT does not spare what the app dials in its own pod"
    )


SAME = {
    "the order of Istio's CNI": ("", ""),
    "another user": ("owner 1337", "owner 1000741337"),
    "an older Istio": ("-A OUTPUT -j ISTIO_OUTPUT", "-A OUTPUT -p tcp -j ISTIO_OUTPUT"),
    "before HBONE": ("-p tcp -m tcp ! --dport 15008 -m owner", "-m owner"),
    "names for UDP": (
        "-A ISTIO_OUTPUT -s 127", "-A ISTIO_OUTPUT -p udp -m udp --dport 53 -j RETURN\n-A ISTIO_OUTPUT -s 127",
    ),
    "another tool's chain": ("-A OUTPUT -j ISTIO_OUTPUT", "-A OUTPUT -j OTHERS\n-A OUTPUT -j ISTIO_OUTPUT"),
}  # fmt: skip


@pytest.mark.parametrize("what", SAME)
def test_what_says_nothing_of_connections_is_no_difference(what):
    before, after = SAME[what]
    if what == "the order of Istio's CNI":
        lines = PLAIN.splitlines()
        first, second = (next(line for line in lines if f"--dport {port} " in line) for port in (15090, 15020))
        swapped = {first: second, second: first}
        text = "\n".join(swapped.get(line, line) for line in lines)
    else:
        text = PLAIN.replace(before, after)
    assert text != PLAIN
    assert istio_rules.difference(nat(text), {}) == ""


def test_a_capture_of_dns_by_tcp_is_a_difference():
    text = PLAIN.replace(
        "-A ISTIO_OUTPUT -s 127", "-A ISTIO_OUTPUT -p tcp -m tcp --dport 53 -j ISTIO_DNS\n-A ISTIO_OUTPUT -s 127"
    )
    assert istio_rules.difference(nat(text), {}) == "ISTIO_OUTPUT has -p tcp -m tcp --dport 53 -j ISTIO_DNS"
