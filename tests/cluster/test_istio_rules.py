"""The rules that merlab gives a pod are those that Istio's own tool writes for the same annotations."""

from __future__ import annotations

import random
import subprocess
from collections import defaultdict

import pytest
from tests import annotated_pods
from tests.annotated_pods import TRAFFIC
from tests.cluster import builds

from merbridge_lab import ruleset
from merbridge_lab.dataplane import istio_rules
from merbridge_lab.istio_facts import (
    AGENT_PORT,
    HEALTH_PORT,
    INBOUND_PORT,
    OUTBOUND_PORT,
    SIDECAR_UID,
    STATS_PORT,
)
from merbridge_lab.labs.embedded import rule_templates

pytestmark = pytest.mark.cluster

RANDOM = 100
#: What random annotations hold rarely, and defaults.
CHOSEN = (
    {},
    {TRAFFIC + "includeOutboundIPRanges": ""},
    {TRAFFIC + "includeInboundPorts": ""},
    {TRAFFIC + "excludeInboundPorts": "15020,80"},
    {TRAFFIC + "excludeInterfaces": "eth1,net1"},
    {TRAFFIC + "includeOutboundIPRanges": "0.0.0.0/0,127.0.0.1/32"},
    {TRAFFIC + "includeOutboundIPRanges": "::1/128,10.0.0.1/8"},
)


def arguments(annotations: dict[str, str]) -> list[str]:
    """Return the arguments of the init container, as Istio's injection template gives them."""

    def value(name: str, default: str = "") -> str:
        return annotations.get(TRAFFIC + name, default)

    # excludeInboundPort() of the template: the status port comes last, unless it is listed already.
    excluded = [port for port in value("excludeInboundPorts").split(",") if port]
    if str(AGENT_PORT) not in excluded:
        excluded.append(str(AGENT_PORT))
    found = ["-p", str(OUTBOUND_PORT), "-z", str(INBOUND_PORT), "-u", str(SIDECAR_UID), "-m", "REDIRECT"]
    found += ["-i", value("includeOutboundIPRanges", "*"), "-x", value("excludeOutboundIPRanges")]
    found += ["-b", value("includeInboundPorts", "*")]
    found += ["-d", ",".join((str(STATS_PORT), str(HEALTH_PORT), *excluded))]
    for flag, name in (("-q", "includeOutboundPorts"), ("-o", "excludeOutboundPorts"), ("-c", "excludeInterfaces")):
        if TRAFFIC + name in annotations:
            found += [flag, value(name)]
    return found


def istios(annotations: dict[str, str], *more: str) -> str:
    """Return what pilot-agent would give iptables-restore."""
    pilot_agent = builds.tool("istio") / "pilot-agent"
    argv = (pilot_agent, "istio-iptables", "--dry-run", *arguments(annotations), *more)
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30, cwd="/")
    begin = "iptables-restore and the following input:\n"
    assert begin in done.stdout, done.stdout + done.stderr
    return done.stdout.partition(begin)[2].partition("COMMIT\n")[0] + "COMMIT\n"


def loaded(text: str) -> dict[str, list[str]]:
    """Load rules in a network namespace that ends with this, and return what nat then holds, by chain."""
    argv = ("unshare", "--net", "sh", "-c", "iptables-nft-restore && iptables-nft-save -t nat")
    saved = subprocess.run(argv, check=True, input=text, capture_output=True, text=True, timeout=30).stdout
    found = defaultdict(list)
    for rule in ruleset.parse(saved):
        found[rule.chain].append(rule.spec)
    return found


def pods() -> list[dict[str, str]]:
    rng = random.Random(14)  # noqa: S311 - no secret
    return [*CHOSEN, *(annotated_pods.annotations(rng) for _ in range(RANDOM))]


def test_our_rules_are_istios() -> None:
    seen = set()
    for pod in pods():
        theirs = loaded(istios(pod))
        assert loaded(rule_templates.pod_rules(tuple(pod.items()))) == theirs, pod
        assert istio_rules.difference(theirs, pod) == "", pod  # so the agent serves the pod
        seen.add(str(sorted(theirs.items())))
    assert len(seen) > RANDOM * 0.8  # they do differ from one another


MESH_WIDE = {
    "an excluded port": ["-d", "15090,15021,15020,9000"],
    "ranges": ["-i", "10.0.0.0/8"],
    "excluded ranges": ["-x", "10.96.0.0/12"],
    "TPROXY": ["-m", "TPROXY"],
    "capture of DNS": ["--redirect-dns", "--capture-all-dns"],
}


@pytest.mark.parametrize("what", MESH_WIDE)
def test_what_a_whole_mesh_asks_for_is_a_difference_from_no_annotation(what: str) -> None:
    assert istio_rules.difference(loaded(istios({})), {}) == ""
    assert istio_rules.difference(loaded(istios({}, *MESH_WIDE[what])), {}) != ""
