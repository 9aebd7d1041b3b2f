"""What the dataplanes' DaemonSets have in common: their pods, merlab's mark on them, and how one was changed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import yaml

from merbridge_lab.labs.kubernetes.topology import MARK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.adapters.kubernetes_api import Api

Object = dict[str, Any]

#: The names of DaemonSets that intercept connections, and a word of the command of another one.
_INTERCEPT, _COMMAND = frozenset({"merbridge", "merlab-agent"}), "mbctl"


def noted(daemonset: Object, key: str) -> str:
    """Return one of merlab's notes; "" if there is none."""
    return str((daemonset["metadata"].get("annotations") or {}).get(key, ""))


def marked(applied: Object) -> Object:
    """Return an object with the label that marks it as merlab's."""
    told = copy.deepcopy(applied)
    told["metadata"].setdefault("labels", {}).update(MARK)
    return told


def is_marked(found: Object) -> bool:
    """Report whether an object is merlab's."""
    return (found["metadata"].get("labels") or {}).items() >= MARK.items()


def pods(api: Api, daemonset: Object) -> Sequence[Object]:
    """List its pods, except those that are ending."""
    return [pod for pod in every_pod(api, daemonset) if not pod["metadata"].get("deletionTimestamp")]


def every_pod(api: Api, daemonset: Object) -> Sequence[Object]:
    """List its pods, including those that are ending."""
    labels = daemonset["spec"]["selector"]["matchLabels"]
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    return api.all("Pod", daemonset["metadata"]["namespace"], selector)


def rolled_out(daemonset: Object) -> bool:
    """Report whether every node has its pod, created from the current DaemonSet, and ready."""
    status = daemonset["status"]
    wanted = status.get("desiredNumberScheduled", 0)
    return bool(
        wanted
        and status.get("observedGeneration", 0) >= daemonset["metadata"]["generation"]
        and status.get("updatedNumberScheduled", 0) == wanted
        and status.get("numberReady", 0) == wanted
    )


def intercepting(api: Api, but: tuple[str, str] = ("", "")) -> list[str]:
    """List the DaemonSets that intercept connections, as NAMESPACE/NAME, except for the one that is named."""
    found = [one for one in api.get("/apis/apps/v1/daemonsets")["items"] if _intercepts(one)]
    places = [(one["metadata"]["namespace"], one["metadata"]["name"]) for one in found]
    return ["/".join(place) for place in places if place != but]


def _intercepts(daemonset: Object) -> bool:
    if daemonset["metadata"]["name"] in _INTERCEPT:
        return True
    spec = daemonset["spec"]["template"]["spec"]
    containers = [*(spec.get("initContainers") or []), *spec["containers"]]
    words = [str(word) for one in containers for word in (*(one.get("args") or ()), *(one.get("command") or ()))]
    return any(_COMMAND in word for word in words)


def differences(wanted: object, live: object, where: str = "") -> list[str]:
    """Describe how an object of the cluster differs from what was applied; ignore what others added."""
    if isinstance(wanted, dict):
        if not isinstance(live, dict):
            return [f"{where.lstrip('.')} is gone"]
        found = (differences(value, live.get(key), f"{where}.{key}") for key, value in wanted.items())
        return [each for one in found for each in one]
    if isinstance(wanted, list):
        if not isinstance(live, list) or len(live) != len(wanted):
            return [f"{where.lstrip('.')} is {_short(live)}, not {_short(wanted)}"]
        pairs = enumerate(zip(wanted, live, strict=True))
        return [each for at, (mine, theirs) in pairs for each in differences(mine, theirs, f"{where}[{at}]")]
    # Empty and absent are the same to the API.
    if wanted == live or (not wanted and not live):
        return []
    return [f"{where.lstrip('.')} is {_short(live)}, not {_short(wanted)}"]


def _short(value: object) -> str:
    if value is None:
        return "absent"
    if isinstance(value, (str, int, bool)):
        return str(value)
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).strip()
