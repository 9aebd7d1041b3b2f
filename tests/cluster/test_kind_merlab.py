"""The kind lab with merlab's own dataplane: the whole walkthrough, proven, by one agent on the node.

What the agent says is compared with the kernel, read from this machine; the agent is removed under requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from agent_host import (
    AGENT,
    DAEMONSET,
    PINS,
    Requests,
    agent,
    in_kernel,
    loaded,
    on_node,
    rolled_out,
    say,
    served,
    state_of,
    status,
    up,
)
from kind_host import held, in_node, kubectl, merlab, pod_of, refusal, rules, settled
from tests.cluster import builds
from tests.merlab_cli import told

from merbridge_lab.labs.kubernetes import topology
from merbridge_lab.labs.kubernetes.dataplanes.merlab import manifest
from schema_files import complaints

if TYPE_CHECKING:
    from collections.abc import Callable

# ruff: noqa: ARG001 - what a test needs to be there, it does not always use

pytestmark = pytest.mark.cluster

STEPS = set(range(10))


@pytest.fixture(scope="module")
def bare(machine: dict[str, object]) -> dict[str, list[Any]]:
    """The node of a cluster in which nothing is yet, without the report that merlab keeps there."""
    assert held(up("--until", "1"))
    found = on_node()
    return {**found, "files": [path for path in found["files"] if path != topology.STATE]}


@pytest.fixture(scope="module")
def lab(bare: dict[str, list[Any]]) -> dict[str, Any]:
    """The report of the first `up` on it."""
    done = up()
    assert held(done)
    return told(done)


def test_all_ten_steps_hold_with_the_proof(lab: dict[str, Any]) -> None:
    assert complaints("run", lab) == []
    assert (lab["lab"], lab["verdict"], lab["skipped"]) == ("kind", "pass", 0)
    assert {one["number"]: one["outcome"] for one in lab["steps"]} == dict.fromkeys(STEPS, "pass")
    checks = {check["name"]: check for one in lab["steps"] for check in one["checks"]}
    assert {"redirect.intercepted", "redirect.payload_moved", "redirect.ebpf_took_over"} <= set(checks)
    assert "control" in checks["redirect.ebpf_took_over"]


def test_the_matrix_holds_with_the_servers_flushed_too(lab: dict[str, Any]) -> None:
    before = rules(), rules("app=helloworld,version=v1")
    done = merlab("verify", "--json")
    assert held(done)
    report = told(done)
    assert report["verdict"] == "pass"
    assert [cell["verdict"] for cell in report["matrix"]] == ["pass"] * 6
    assert (rules(), rules("app=helloworld,version=v1")) == before
    all_flushed = report["matrix"][2]
    assert (all_flushed["ebpf"], all_flushed["server_rules"]) == (True, False)
    assert all_flushed["why"].count("no rule was left in sleep and helloworld-disposable")
    sources = {reading["source"] for reading in all_flushed["evidence"]}
    assert {"envoy:helloworld-disposable/access", "bpf:helloworld-disposable/sk_lookup_assigned"} <= sources
    assert not [source for source in sources if "helloworld-v" in source], "helloworld's own servers keep their rules"
    left = kubectl("get", "pods,services", "-o", "name")
    assert "twin" not in left
    assert "disposable" not in left


def alone() -> set[str]:
    """Return the pods that are served, once the disposable server is gone: its processes outlive its object."""
    selectors = ("app=sleep", "app=helloworld,version=v1", "app=helloworld,version=v2")
    ours = {pod_of(selector)["metadata"]["name"] for selector in selectors}
    assert settled(served, ours, 30.0) == ours
    return ours


def test_on_a_healthy_lab_up_makes_nothing_anew(lab: dict[str, Any]) -> None:
    alone()
    before = [pod_of("app=sleep")["metadata"]["uid"], agent("programs")]
    done = up("--until", "4")
    assert held(done)
    acted = {one["number"]: one["acted"] for one in told(done)["steps"]}
    assert [acted[number] for number in (1, 2, 3, 4)] == [False] * 4
    alone()
    assert [pod_of("app=sleep")["metadata"]["uid"], agent("programs")] == before


def test_the_agent_and_the_kernel_agree_on_the_pods(lab: dict[str, Any]) -> None:
    names, found = alone(), status()
    assert {name.partition("/")[2] for name in agent("counters")} == names
    told_of = told(merlab("status", "--json"))
    assert complaints("status", told_of) == []
    assert told_of["problems"] == []
    assert told_of["dataplane"]["kind"] == "merlab"
    assert found["refused"]["host_network"] >= 1, "kube-proxy and its like"


_POD = """
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  labels: {{{labels}}}
spec:
  terminationGracePeriodSeconds: 1
  hostNetwork: {host}
  containers:
    - {{name: sleep, image: {image}, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}}
"""
_CANDIDATES = {
    "opted-out": ("merlab.dev/dataplane: none", "false", "opted_out"),
    "host-network": ("sidecar.istio.io/inject: 'false'", "true", "host_network"),
    "without-sidecar": ("sidecar.istio.io/inject: 'false'", "false", "no_sidecar"),
}


def test_wrong_candidates_are_refused_each_with_its_reason(lab: dict[str, Any]) -> None:
    image = builds.ref("curl")
    texts = [
        _POD.format(name=name, labels=labels, host=host, image=image) for name, (labels, host, _) in _CANDIDATES.items()
    ]
    kubectl("apply", "-f", "-", stdin="---".join(texts))
    try:
        wanted = {name: ("refused", reason) for name, (_, _, reason) in _CANDIDATES.items()}
        assert settled(lambda: {name: state_of(name) for name in wanted}, wanted, 40.0) == wanted
        assert not {f"default/{name}" for name in wanted} & set(agent("counters"))
    finally:
        kubectl("delete", "pods", *_CANDIDATES, "--wait", "--ignore-not-found")


def test_without_any_agent_one_write_switches_it_off_and_on(lab: dict[str, Any]) -> None:
    """The kill switch: the rules do the work again, and nothing is lost."""
    requests = Requests()
    try:
        say("redirect", "off")
        counted = agent("counters")
        assert held(merlab("exec", "sleep", "--", "curl", "-s", "helloworld:5000/hello"))
        sleep = f"default/{pod_of('app=sleep')['metadata']['name']}"
        assert agent("counters")[sleep]["outbound_connects"] == counted[sleep]["outbound_connects"]
        assert told(merlab("status", "--json"))["dataplane"]["attached"] is False
    finally:
        say("redirect", "on")
        answers = requests.end()
    assert set(answers) == {"200"}
    assert held(merlab("step", "6"))


def test_another_dataplane_is_refused_with_the_commands_in_order(lab: dict[str, Any]) -> None:
    said = refusal(merlab("up", "--dataplane", "merbridge", "--json"))
    assert "has the dataplane merlab, not merbridge" in said
    assert "--dataplane none && " in said
    assert status()["running"], "it was not touched"


def test_with_native_sidecars_all_holds_too(lab: dict[str, Any]) -> None:
    done = up("--sidecars", "native")
    assert held(done)
    report = told(done)
    assert {one["number"]: one["outcome"] for one in report["steps"]} == dict.fromkeys(STEPS, "pass")
    assert [one["name"] for one in pod_of("app=sleep")["spec"]["containers"]] == ["sleep"]


def removed_under_requests(remove: Callable[[], object]) -> None:
    """Check that requests go on while it is removed, and that nothing of it is in the kernel afterwards."""
    objects, requests = loaded(), Requests()
    assert in_kernel(objects) == objects
    try:
        remove()
    finally:
        answers = requests.end()
    assert len(answers) > 20
    assert set(answers) == {"200"}
    assert PINS not in in_node("find", "/sys/fs/bpf").splitlines()
    assert settled(lambda: in_kernel(objects), set()) == set()


def test_three_lines_of_kubectl_remove_it_under_requests(lab: dict[str, Any]) -> None:
    """As the manifest says: for whoever does not have merlab."""

    def remove() -> None:
        kubectl(*AGENT, "set", "env", DAEMONSET, "MERLAB_AGENT=remove")
        rolled_out()
        kinds = ("namespace", "clusterrole", "clusterrolebinding")
        kubectl("delete", *(f"{kind}/{manifest.NAME}" for kind in kinds), "--wait")

    removed_under_requests(remove)


def test_down_keeps_the_cluster_and_leaves_the_node_as_it_was(lab: dict[str, Any], bare: dict[str, list[Any]]) -> None:
    assert held(up("--until", "3"))
    assert on_node() != bare
    assert held(merlab("down", "--keep-cluster"))
    assert settled(on_node, bare) == bare


@pytest.mark.soak
def test_asking_for_no_dataplane_removes_it_under_requests(machine: dict[str, object]) -> None:
    assert held(up("--until", "3"))
    # The test cluster's own arguments ask for none.
    removed_under_requests(lambda: held(merlab("up", "-q", "--until", "2")))
