"""Check that Merbridge is in order: its DaemonSet, its pod and its log, what it attached, the pods that it knows."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab.labs.kubernetes import diagnostics, pod_netns, pods, topology
from merbridge_lab.labs.kubernetes.dataplanes import daemonsets
from merbridge_lab.labs.kubernetes.dataplanes.merbridge import installation, manifest, rollout
from merbridge_lab.labs.kubernetes.dataplanes.merbridge.installation import NAME, NAMESPACE, PATH
from merbridge_lab.labs.kubernetes.dataplanes.merbridge.manifest import MERBRIDGE
from merbridge_lab.labs.kubernetes.dataplanes.node_view import OutsideError
from merbridge_lab.labs.kubernetes.settings import Settings
from merbridge_lab.merbridge import kernel_objects
from merbridge_lab.merbridge import log as words

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.labs.kubernetes.connection import Access
    from merbridge_lab.labs.kubernetes.dataplanes.merbridge.installation import Object
    from merbridge_lab.labs.kubernetes.dataplanes.node_view import NodeView


def problems(access: Access, place: Callable[[], NodeView], state: Callable[[], kernel_objects.State]) -> list[str]:
    """Describe, one sentence each, what is not in order, as far as it is visible by then. Raises LabError."""
    found = access.api().find(PATH)
    if found is None:
        return [f"Merbridge is not installed: there is no DaemonSet {NAMESPACE}/{NAME}"]
    return _of_daemonset(access, found) or _of_pods(access, found) or _of_kernel(access, place(), state())


def _of_daemonset(access: Access, found: Object) -> list[str]:
    if not installation.is_ours(found):
        return [f"the DaemonSet {NAMESPACE}/{NAME} is not merlab's: it stays untouched"]
    if edits := _other_than_asked(access, found) or installation.edits(found):
        return [f"the DaemonSet {NAMESPACE}/{NAME} is not as merlab applied it: {'; '.join(edits)}"]
    if others := installation.others(access.api()):
        return [f"there is another Merbridge, {others[0]}: two interfere with each other"]
    return []


def _of_pods(access: Access, found: Object) -> list[str]:
    api = access.api()
    if not daemonsets.rolled_out(found):
        return [f"the pod of Merbridge is not ready: {diagnostics.waited_for(daemonsets.pods(api, found))}"]
    active_pods = daemonsets.pods(api, found)
    for pod in active_pods:
        if not words.ready(rollout.log(api, pod)):
            return [f"the log of {pod['metadata']['name']} does not say that it is ready ({words.READY})"]
    return [] if active_pods else ["the pod of Merbridge is ending, and the next one is not made yet"]


def _other_than_asked(access: Access, found: Object) -> list[str]:
    settings = access.settings()
    name = daemonsets.noted(found, installation.FROM)
    if name != settings.merbridge_manifest:
        return [f"it is from {name or 'merlab'}, not from {settings.merbridge_manifest or 'merlab'}"]
    image, wanted = manifest.main(found)["image"], settings.images[MERBRIDGE]
    if image != wanted and (not settings.merbridge_manifest or wanted != Settings.default().images[MERBRIDGE]):
        return [f"its image is {image}, not {wanted}"]
    return []


def _of_kernel(access: Access, place: NodeView, state: kernel_objects.State) -> list[str]:
    if state.missing:
        return [f"not attached to the cgroup of {access.node().name}: {', '.join(state.missing)}"]
    known, api = set(kernel_objects.pods(state)), access.api()
    unknown = [
        f"{kernel_objects.PODS} does not hold {pod.ip}, the address of {pod.name}"
        for spec in topology.WORKLOADS
        for pod in pods.active_pods(api, spec)
        # Upstream does not detect native sidecars; doctor and step 3 explain the consequences.
        if pod.ip and pod.sidecar == "classic" and pod.ip not in known
    ]
    if unknown:
        return unknown
    try:
        return forgotten(access, place, state)
    except OutsideError as error:
        return [f"the containers that Merbridge marks as not in the mesh could not be read: {error.what}"]


def forgotten(access: Access, place: NodeView, state: kernel_objects.State) -> list[str]:
    """List the containers that Merbridge marks as not in the mesh: they dialled before a sidecar listened."""
    return [
        f'Merbridge permanently marks {name} "not in mesh": it dialled before its sidecar listened'
        for name in kernel_objects.outside_mesh(state, _cgroups(access, place))
    ]


def _cgroups(access: Access, place: NodeView) -> dict[str, int]:
    api, running, found = access.api(), pod_netns.tasks(access.node()), {}
    for spec in topology.WORKLOADS:
        for pod in pods.active_pods(api, spec):
            for name in (spec.container, topology.SIDECAR):
                # One that ends meanwhile is checked the next time.
                with contextlib.suppress(FileNotFoundError, ProcessLookupError, KeyError):
                    found[f"the container {name} of {pod.name}"] = place.cgroup_id(running[pod.containers[name]])
    return found
