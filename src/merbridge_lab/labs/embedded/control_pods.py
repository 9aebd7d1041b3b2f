"""Pods outside the dataplane's cgroup, created temporarily: the control experiments."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from merbridge_lab import signals
from merbridge_lab.labs.embedded import topology
from merbridge_lab.labs.embedded.mesh import Pod
from merbridge_lab.labs.embedded.workload import EmbeddedWorkload
from merbridge_lab.starting import Starting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from merbridge_lab.labs.embedded.host import Machine
    from merbridge_lab.labs.embedded.node import Node
    from merbridge_lab.labs.embedded.topology import PodSpec

_READY = 15.0
_GONE = 5.0


@contextlib.contextmanager
def made(machine: Machine, node: Node, *specs: PodSpec) -> Iterator[Starting[tuple[EmbeddedWorkload, ...]]]:
    """Begin these control pods, for the block's duration. Raises LabError, ClaimFailedError, OSError."""
    machine.require_own()
    pods = [Pod(machine, node, spec) for spec in specs]

    def ready() -> tuple[EmbeddedWorkload, ...]:
        for pod in pods:
            if pod.spec.sidecar:
                pod.wait_ready(_READY)
        return tuple(EmbeddedWorkload(machine, pod) for pod in pods)

    try:
        for pod in pods:
            _remove(machine, pod)  # what a killed merlab left of one, with what it had flushed there
            pod.ensure()
        yield Starting(ready)
    finally:
        with signals.shielded():
            for pod in pods:
                _remove(machine, pod)


def sweep(machine: Machine, node: Node) -> list[str]:
    """Remove everything that a killed merlab left of control and bench pods, saves of their rules included.

    Return their names.
    """
    removed = []
    sleep = topology.PODS[0]
    bench = (spec for slot in (*topology.BENCH_SLOTS, topology.BENCH_DIRECT) for spec in topology.bench_pods(slot))
    clients = (topology.control_client(sleep, 0), topology.control_client(sleep, 1))
    for spec in (*clients, *topology.control_pair(), *bench):
        pod = Pod(machine, node, spec)
        rules = EmbeddedWorkload(machine, pod).rules
        places = (pod.cgroup, pod.netns, pod.mntns, pod.folder, rules.saved_at, rules.copied_at)
        if any(os.path.lexists(place) for place in places):
            _remove(machine, pod)
            removed.append(spec.name)
    return removed


def _remove(machine: Machine, pod: Pod) -> None:
    pod.remove(_GONE)
    EmbeddedWorkload(machine, pod).rules.forget()
