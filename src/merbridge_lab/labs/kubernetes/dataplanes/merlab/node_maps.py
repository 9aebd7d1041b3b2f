"""What the agent pinned on the node, read by this process: evidence that does not rest on the agent's word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.dataplane import Dataplane, Reconciler
from merbridge_lab.labs.kubernetes import pods, topology
from merbridge_lab.labs.kubernetes.dataplanes.merlab.manifest import PINS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from merbridge_lab.adapters.kubernetes_api import Api
    from merbridge_lab.dataplane import Legs
    from merbridge_lab.labs.kubernetes.dataplanes.node_view import NodeView
    from merbridge_lab.labs.kubernetes.pods import Pod
    from merbridge_lab.labs.kubernetes.topology import WorkloadSpec


def place(node: NodeView) -> Path:
    """Return where the pins of a node are, seen from here."""
    return node.root / "sys/fs/bpf" / PINS


def reader(node: NodeView) -> Reconciler:
    """Return what reads the pins of a node. It must not change anything: the agent does."""
    return Reconciler(place(node))


def legs(node: NodeView) -> Legs | None:
    """Return the legs that the node's pods are served with; None if none is. Raises LabError."""
    return Dataplane(place(node)).legs()


def are_there(node: NodeView) -> bool:
    """Report whether anything is pinned on a node."""
    return place(node).is_dir()


def workload_pods(api: Api, specs: Iterable[WorkloadSpec] = topology.WORKLOADS) -> dict[str, list[Pod]]:
    """Return the pods of each workload that are not ending."""
    return {spec.name: pods.active_pods(api, spec) for spec in specs}


def counters(node: NodeView, found: Mapping[str, list[Pod]]) -> dict[str, dict[str, int]]:
    """Return the counters by workload: those of its pods, added up. Raises LabError."""
    counted = reader(node).counters()
    added: dict[str, dict[str, int]] = {}
    for name, each in found.items():
        served = [counted[pod.uid] for pod in each if pod.uid in counted]
        if served:
            added[name] = {counter: sum(one[counter] for one in served) for counter in served[0]}
    return added
