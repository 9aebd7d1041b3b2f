"""Pods of the embedded lab with Istio's annotations: real sidecars, real rules, and eBPF that decides alike."""

from __future__ import annotations

import dataclasses
import subprocess

import pytest
from host_state import READY, Lab, curl

from merbridge_lab.adapters import iptables
from merbridge_lab.labs.embedded import topology
from merbridge_lab.labs.embedded.dataplane import EmbeddedDataplane
from merbridge_lab.labs.embedded.mesh import Mesh
from merbridge_lab.polling import poll_until

pytestmark = pytest.mark.kernel

NAME = "merlab-annotated"
_TRAFFIC = "traffic.sidecar.istio.io/"
SLEEP, V1, V2 = topology.PODS
#: What the client's sidecar is spared, by address, and the server's, by port.
ANNOTATIONS = {
    SLEEP.name: ((_TRAFFIC + "excludeOutboundIPRanges", f"{V1.ip}/32,203.0.113.0/24"),),
    V1.name: ((_TRAFFIC + "excludeInboundPorts", "5000"),),
}


class AnnotatedLab(Lab):
    def __init__(self) -> None:
        super().__init__(NAME)
        # What asks a strict server's sidecar for mutual TLS would ask the app: the port is excluded.
        pods = [
            dataclasses.replace(pod, annotations=ANNOTATIONS.get(pod.name, ()), permissive=pod.name == V1.name)
            for pod in topology.pods()
        ]
        self.mesh = Mesh(self.machine, self.node, pods)
        self.sleep, self.v1, self.v2 = self.mesh.pods


@pytest.fixture(scope="module")
def lab():
    made = AnnotatedLab()
    made.machine.remove(10)
    try:
        made.ensure()
        yield made
    finally:
        made.machine.remove(10)


@pytest.fixture
def plane(lab):
    plane = EmbeddedDataplane(lab.machine, lab.mesh)
    try:
        plane.ensure()
        yield plane
    finally:
        plane.remove()


def _peer(answer: str) -> str:
    return next((line.split(": ")[1] for line in answer.splitlines() if line.startswith("x-peer")), "")


def peer(lab: AnnotatedLab, address: str) -> str:
    """Return who the app at `address` saw: 127.0.0.6 if its sidecar delivered the request; "" if it saw none."""
    return _peer(curl(lab.sleep, "-i", url=f"http://{address}:5000/hello").stdout)


def by_service(lab: AnnotatedLab) -> str:
    """Return who helloworld-v2 saw of a request by the service's name: the sidecar chooses between the two.

    Those to helloworld-v1 fail or hang, as in Istio: the port is excluded, so mutual TLS reaches the app.
    """

    def look() -> str:
        done = curl(lab.sleep, "-i", "--max-time", "1")
        return done.stdout.split("x-peer: ")[1].split()[0] if "version: v2" in done.stdout else ""

    return poll_until(look, timeout=20, awaiting="an answer of helloworld-v2")


def seen(lab: AnnotatedLab) -> dict[str, str]:
    return {"excluded at both ends": peer(lab, V1.ip), "by service": by_service(lab)}


EXPECTED = {"excluded at both ends": SLEEP.ip, "by service": "127.0.0.6"}


def test_rules_alone(lab):
    """The reference. The pods are in order with the rules of their own annotations."""
    assert lab.problems() == []
    assert seen(lab) == EXPECTED
    before = iptables.snapshot(lab.sleep.netns).packets("ISTIO_REDIRECT")
    assert peer(lab, V1.ip) == SLEEP.ip
    assert iptables.snapshot(lab.sleep.netns).packets("ISTIO_REDIRECT") == before


def test_ebpf_over_the_rules(lab, plane):
    assert plane.problems() == []
    before = plane.counters()
    assert peer(lab, V1.ip) == SLEEP.ip
    after = plane.counters()
    assert after[SLEEP.name]["outbound_connects"] == before[SLEEP.name]["outbound_connects"]
    assert after[SLEEP.name]["untouched_connects"] == before[SLEEP.name]["untouched_connects"] + 1
    assert by_service(lab) == "127.0.0.6"
    assert plane.counters()[SLEEP.name]["outbound_connects"] > before[SLEEP.name]["outbound_connects"]
    assert plane.counters()[V1.name]["refused_handovers"] == 0


def test_ebpf_alone(lab, plane):
    """With the nat rules flushed everywhere, what is excluded is left alone and the rest still passes both sidecars."""
    for pod in lab.mesh.pods:
        iptables.flush(pod.netns, "nft", "nat")
    try:
        assert seen(lab) == EXPECTED
        # From outside the mesh: excluded at one server, steered to the sidecar at the other, which wants mutual TLS.
        before = plane.counters()
        node = [(pod.spec.name, _from_node(lab, pod.spec.ip)) for pod in (lab.v1, lab.v2)]
        assert node == [(V1.name, topology.NODE_ADDRESS), (V2.name, "")]
        after = plane.counters()
        assert after[V2.name]["sk_lookup_assigned"] == before[V2.name]["sk_lookup_assigned"] + 1
        assert after[V1.name]["sk_lookup_assigned"] == before[V1.name]["sk_lookup_assigned"] == 0
    finally:
        lab.mesh.ensure()
        lab.mesh.wait_ready(READY)
    assert lab.problems() == []


def _from_node(lab: AnnotatedLab, address: str) -> str:
    """Return who the app at `address` saw of a plain request of the node, which is not in the mesh."""
    argv = ["nsenter", f"--net={lab.node.netns}", "curl", "-is", "--max-time", "5", f"http://{address}:5000/hello"]
    return _peer(subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False).stdout)


def test_a_pod_with_an_annotation_that_ebpf_cannot_follow(lab, plane):
    """It is left to the rules, with the reason; the others are served."""
    name = _TRAFFIC + "excludeInterfaces"
    lab.sleep.spec = dataclasses.replace(lab.sleep.spec, annotations=((name, "net1"),))
    try:
        lab.mesh.ensure()
        assert lab.problems() == []
        assert "-A PREROUTING -i net1 -j RETURN" in iptables.snapshot(lab.sleep.netns).text("nft", "nat")
        plane.ensure()
        said = f"sleep is left to the rules: eBPF does not support the annotation {name}: 'net1'"
        assert plane.problems() == [said]
        assert set(plane.counters()) == {V1.name, V2.name}
        assert by_service(lab) == "127.0.0.6"
    finally:
        lab.sleep.spec = dataclasses.replace(lab.sleep.spec, annotations=ANNOTATIONS[SLEEP.name])
        lab.mesh.ensure()
