"""A pod as the API describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import topology

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from merbridge_lab.adapters.kubernetes_api import Api
    from merbridge_lab.labs.kubernetes.topology import WorkloadSpec


@dataclass(frozen=True)
class Pod:
    """One pod. `containers` maps the name of a running container to its id; `sidecar` is classic, native or ""."""

    name: str
    uid: str
    ip: str
    node: str
    containers: Mapping[str, str]
    sidecar: str
    ready: bool
    sidecar_ready: bool
    ending: bool
    restarts: int


def read(told: dict[str, Any]) -> Pod:
    """Parse the API's description of a pod."""
    meta, spec, status = told["metadata"], told["spec"], told["status"]
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    running = [one for one in statuses if "running" in (one.get("state") or {})]
    conditions = {one["type"]: one["status"] for one in status.get("conditions") or []}
    return Pod(
        name=meta["name"],
        uid=meta["uid"],
        ip=status.get("podIP", ""),
        node=spec.get("nodeName", ""),
        containers={one["name"]: one["containerID"].rpartition("//")[2] for one in running},
        sidecar=_sidecar(spec),
        ready=conditions.get("Ready") == "True",
        sidecar_ready=any(one["name"] == topology.SIDECAR and one.get("ready") for one in running),
        ending=bool(meta.get("deletionTimestamp")),
        restarts=sum(int(one.get("restartCount", 0)) for one in statuses),
    )


def _sidecar(spec: dict[str, Any]) -> str:
    """Return the kind of the pod's sidecar by its position, which no version or setting changes; "" if it has none."""
    if any(one["name"] == topology.SIDECAR for one in spec["containers"]):
        return "classic"
    native = (one for one in spec.get("initContainers") or [] if one["name"] == topology.SIDECAR)
    return "native" if any(one.get("restartPolicy") == "Always" for one in native) else ""


def active_pods(api: Api, spec: WorkloadSpec) -> list[Pod]:
    """List the pods of a workload that are not ending, the ready ones first."""
    found = [read(told) for told in api.all("Pod", topology.NAMESPACE, spec.selector)]
    return sorted((pod for pod in found if not pod.ending), key=lambda pod: not pod.ready)


def running_pod(pods: Sequence[Pod], spec: WorkloadSpec) -> Pod:
    """Return the pod of a workload. Raise LabError if none has its app running."""
    for pod in pods:
        if pod.ip and spec.container in pod.containers:
            return pod
    raise LabError(f"no pod of {spec.name} is running", hint="merlab up", id="pod.not_ready")
