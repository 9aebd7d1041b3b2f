"""Check that the agent is in order: its DaemonSet and pods, what is pinned on the node, and the pods that it serves."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import diagnostics
from merbridge_lab.labs.kubernetes.dataplanes import daemonsets
from merbridge_lab.labs.kubernetes.dataplanes.merlab import agent_exec, manifest, node_maps
from merbridge_lab.labs.kubernetes.dataplanes.merlab.manifest import NAME, NAMESPACE, PATH

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.labs.kubernetes.connection import Access
    from merbridge_lab.labs.kubernetes.dataplanes.node_view import NodeView


def problems(access: Access, place: Callable[[], NodeView]) -> list[str]:
    """Describe, one sentence each, what is not in order, as far as it is visible by then. Raises LabError."""
    return of_daemonset(access) or of_pods(access) or of_node(place()) or of_workloads(access, place())


def of_daemonset(access: Access) -> list[str]:
    """Check that the DaemonSet is as merlab applied it, and the only thing that intercepts."""
    found = access.api().find(PATH)
    if found is None:
        return [f"merlab's agent is not installed: there is no DaemonSet {NAMESPACE}/{NAME}"]
    if not daemonsets.is_marked(found):
        return [f"the DaemonSet {NAMESPACE}/{NAME} is not merlab's: it stays untouched"]
    if manifest.is_removing(found):
        return [f"the DaemonSet {NAMESPACE}/{NAME} removes what its agents attached"]
    wanted = manifest.daemonset(manifest.objects(access.settings()))
    if edits := daemonsets.differences(wanted["spec"], found["spec"], "spec"):
        return [f"the DaemonSet {NAMESPACE}/{NAME} is not as merlab applied it: {'; '.join(edits)}"]
    if others := daemonsets.intercepting(access.api(), but=(NAMESPACE, NAME)):
        return [f"the DaemonSet {others[0]} intercepts, too: two interfere with each other"]
    return []


def of_pods(access: Access) -> list[str]:
    """Check that every node has its agent, and that it is ready."""
    api = access.api()
    found = api.get(PATH)
    if not daemonsets.rolled_out(found):
        return [f"the pod of merlab's agent is not ready: {diagnostics.waited_for(daemonsets.pods(api, found))}"]
    return []


def of_node(place: NodeView) -> list[str]:
    """Check what is pinned on the node, in the kernel and not by the agent's word."""
    return node_maps.reader(place).programs_problems()


def of_workloads(access: Access, place: NodeView) -> list[str]:
    """Check that the pods of the walkthrough are served; of one that is not, say what the agent says."""
    api = access.api()
    served = node_maps.reader(place).served()
    unserved = [
        pod for found in node_maps.workload_pods(api).values() for pod in found if pod.ready and pod.uid not in served
    ]
    told = []
    for pod in unserved:
        why = ""
        with contextlib.suppress(LabError):
            why = agent_exec.why_left(api, pod.uid)
        told.append(f"eBPF does not serve {pod.name}: {why or 'the agent does not know it'}")
    return told
