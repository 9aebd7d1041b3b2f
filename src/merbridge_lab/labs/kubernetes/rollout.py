"""Wait for a Deployment: what is awaited, for how long, and if it is hopeless, why."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from merbridge_lab import polling
from merbridge_lab.adapters import kubernetes_api
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import diagnostics, topology
from merbridge_lab.labs.kubernetes.pod_netns import CTR
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from merbridge_lab.adapters.kubernetes_api import Api
    from merbridge_lab.labs.kubernetes.diagnostics import PodFailure
    from merbridge_lab.labs.kubernetes.provider import Node, NodeImages

#: The longest wait is for an image of 200 MB on a slow line, in seconds.
_READY = 240.0
#: How long containers that all run may take to be ready, in seconds; a sidecar takes three.
_RUNNING = 60.0
_LOG_LINES = 12


def wait(api: Api, name: str, images: NodeImages, namespace: str = topology.NAMESPACE) -> None:
    """Wait until a Deployment is as it should be. Raise LabError, early if it will not be.

    `images` tells how a missing image gets into the node.
    """
    began = time.monotonic()
    seen: dict[str, Any] = {"found": None, "pods": [], "running": None}
    memory = diagnostics.Memory()

    def ready() -> bool:
        found = api.get(kubernetes_api.path("Deployment", name, namespace))
        seen["pods"] = pods_of(api, found)
        waited = time.monotonic() - began
        seen["found"] = diagnostics.diagnose(seen["pods"], waited, images, memory=memory)
        if seen["found"] is None and not seen["pods"]:
            seen["found"] = diagnostics.refused(name, api.events(namespace), waited, memory)
        if is_done(found):
            seen["found"] = None
            return True
        if not diagnostics.all_run(seen["pods"]):
            seen["running"] = None
        elif seen["running"] is None:
            seen["running"] = time.monotonic()
        elif time.monotonic() - seen["running"] > _RUNNING:
            seen["found"] = seen["found"] or diagnostics.never_ready(seen["pods"], name, _RUNNING)
        return seen["found"] is not None

    def awaited() -> str:
        return f"{name} to be ready: {diagnostics.waited_for(seen['pods'])}"

    done = polling.poll_until(ready, timeout=_READY, every=0.3, awaiting=awaited)
    if seen["found"] is not None:
        raise with_log(api, namespace, seen["found"])
    if not done:
        late = diagnostics.diagnose(seen["pods"], _READY, images, now=True)
        why = f": {late.what}" if late else f", waiting for {diagnostics.waited_for(seen['pods'])}"
        raise LabError(
            f"{name} was not ready within {_READY:.0f} s{why}",
            hint=late.hint if late else "merlab status",
            stderr=diagnostics.told(api.events(namespace)) or None,
            id=late.id if late else "pod.not_ready",
        )


def is_done(deployment: dict[str, Any]) -> bool:
    """Report whether everything that a Deployment requests exists, and what it requested before is gone."""
    status, wanted = deployment["status"], deployment["spec"].get("replicas", 1)
    return bool(
        status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
        and status.get("updatedReplicas", 0) == wanted
        and status.get("availableReplicas", 0) == wanted
        and status.get("replicas", 0) == wanted
    )


def pods_of(api: Api, deployment: dict[str, Any]) -> list[dict[str, Any]]:
    """List a Deployment's pods, except those that are ending."""
    labels = deployment["spec"]["selector"]["matchLabels"]
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    found = api.all("Pod", deployment["metadata"]["namespace"], selector)
    return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]


def with_log(api: Api, namespace: str, found: PodFailure) -> LabError:
    """Return a pod failure as an error, with the end of the relevant log and the last events."""
    said = ""
    if found.container:
        with contextlib.suppress(LabError):
            said = api.log(namespace, found.pod, found.container, tail=_LOG_LINES)
    with contextlib.suppress(LabError):
        said = said or diagnostics.told(api.events(namespace))
    return found.error(said.strip())


# -- images on the node ------------------------------------------------------------------------------------------------


def images_on(node: Node) -> frozenset[str]:
    """List the names of the images that a node has."""
    return frozenset(node.execute([*CTR, "images", "ls", "--quiet"]).stdout.split())


def images_by_name(node: Node) -> dict[str, str]:
    """Return the digest of each image that a node has, by its names; one of them is the digest of its configuration."""
    rows = [line.split() for line in lines_of(node.execute([*CTR, "images", "ls"]).stdout)[1:]]
    return {row[0]: row[2] for row in rows if len(row) > 2}  # noqa: PLR2004 - REF TYPE DIGEST
