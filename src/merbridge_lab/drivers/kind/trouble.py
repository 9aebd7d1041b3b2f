"""Why a pod does not come up: read from its state and from events, and said so that one knows what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters.docker import registry
from merbridge_lab.drivers.kind import layout
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: How long a pod may be without a place before that is called hopeless, in seconds: another may just be ending.
_PLACE = 10.0
#: For how long pods of before may still be there, in seconds: their trouble is not that of the new ones.
_OLD_ONES = 5.0
#: How long the pods of a Deployment may be refused before that is: the eleventh try comes 20 s after the first.
_REFUSED = 25.0
_NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError"}
_CRASHED = {"CrashLoopBackOff", "CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
#: Crashes of a container before that is called hopeless: a sidecar may give up once while its server starts.
_CRASHES = 2


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a pod. `container` is whose log tells more, if any does."""

    what: str
    hint: str
    pod: str
    container: str = ""

    def error(self, log: str = "") -> LabError:
        """Give it as an error, with what the log says."""
        return LabError(self.what, hint=self.hint, stderr=log or None)


def _seconds_since(stamp: str | None) -> float:
    if not stamp:
        return 0.0
    then = datetime.fromisoformat(stamp.replace("Z", "+00:00"))
    return (datetime.now(timezone.utc) - then).total_seconds()


def in_pods(pods: Iterable[dict[str, Any]], waited: float, *, now: bool = False) -> Trouble | None:
    """Find what will not mend itself, having waited so many seconds; with `now` also what might, given time."""
    if waited < _OLD_ONES:
        return None
    for pod in pods:
        if pod["metadata"].get("deletionTimestamp"):
            continue
        found = _no_place(pod, now=now) or _no_container(pod, now=now)
        if found is not None:
            return found
    return None


def _no_place(pod: dict[str, Any], *, now: bool) -> Trouble | None:
    for condition in pod["status"].get("conditions") or []:
        unplaced = (condition["type"], condition["status"]) == ("PodScheduled", "False")
        if unplaced and (now or _seconds_since(condition.get("lastTransitionTime")) > _PLACE):
            name, said = pod["metadata"]["name"], condition.get("message", "")
            return Trouble(
                f"the pod {name} finds no place on the node: {said}",
                f"kubectl --context {layout.CONTEXT} describe node",
                name,
            )
    return None


def _no_container(pod: dict[str, Any], *, now: bool) -> Trouble | None:
    name = pod["metadata"]["name"]
    for status in _containers(pod):
        waiting = (status.get("state") or {}).get("waiting") or {}
        reason, said = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _NO_IMAGE:
            return _without_image(name, status["image"], reason, said)
        crashed = status.get("restartCount", 0) >= (1 if now else _CRASHES)
        if reason in _CRASHED and (crashed or reason != "CrashLoopBackOff"):
            return Trouble(
                f"the container {status['name']} of {name} does not run: {reason} {said}".rstrip(),
                f"kubectl --context {layout.CONTEXT} -n {pod['metadata']['namespace']} logs {name} -c {status['name']}",
                name,
                status["name"],
            )
    return None


def _containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    status = pod["status"]
    yield from status.get("initContainerStatuses") or []
    yield from status.get("containerStatuses") or []


def _without_image(pod: str, image: str, reason: str, said: str) -> Trouble:
    load = f"kind load docker-image --name {layout.CLUSTER} {image}"
    return Trouble(
        f"the image {image} of {pod} cannot be had from {registry(image)}: {reason} {_short(said)}".rstrip(),
        f"docker pull {image} && {load}",
        pod,
    )


def _short(said: str) -> str:
    """Leave the end of a message of the kubelet's, where the cause stands: it wraps it in several layers of names."""
    return re.sub(r"\s+", " ", said.rpartition(": failed to ")[2])[:300]


def never_ready(pods: Sequence[dict[str, Any]], name: str, seconds: float) -> Trouble:
    """Say which container has been running for `seconds` and is not ready; its log should say why."""
    for pod in pods:
        for status in _containers(pod):
            if "running" in (status.get("state") or {}) and not status.get("ready"):
                return Trouble(
                    f"the container {status['name']} of {pod['metadata']['name']} runs, but is not ready after"
                    f" {seconds:.0f} s",
                    f"kubectl --context {layout.CONTEXT} describe pod {pod['metadata']['name']}",
                    pod["metadata"]["name"],
                    status["name"],
                )
    return Trouble(f"{name} is not ready after {seconds:.0f} s", "merlab status --lab kind", name)


def all_run(pods: Sequence[dict[str, Any]]) -> bool:
    """Whether every container of the pods is there and runs, or has come to a good end."""
    states = [status.get("state") or {} for pod in pods for status in _containers(pod)]
    ended = [(state.get("terminated") or {}).get("exitCode") == 0 for state in states]
    return bool(states) and all("running" in state or done for state, done in zip(states, ended, strict=True))


def refused(deployment: str, events: Sequence[dict[str, Any]], waited: float) -> Trouble | None:
    """Find out why a Deployment has had no pods at all for `waited` seconds: what makes them was refused.

    Events are kept for an hour: what is older than the wait tells of other times.
    """
    mine = [event for event in events if _is_refusal(event, deployment) and _age(event) <= waited + 1]
    refused_for = min(waited, max((_age(event, of="firstTimestamp") for event in mine), default=0.0))
    if refused_for < _REFUSED:
        return None
    return Trouble(
        f"no pod of {deployment} can be made: {mine[-1].get('message', '')}",
        f"kubectl --context {layout.CONTEXT} -n {layout.ISTIO} get pods",
        deployment,
    )


def _is_refusal(event: dict[str, Any], deployment: str) -> bool:
    owner = event["involvedObject"]
    is_mine = owner["kind"] in ("ReplicaSet", "Deployment") and owner["name"].startswith(deployment)
    return is_mine and event.get("reason") == "FailedCreate"


def _age(event: dict[str, Any], *, of: str = "lastTimestamp") -> float:
    """Give the seconds since an event was seen last, or first; its times are whole seconds."""
    return _seconds_since(event.get(of) or event["metadata"]["creationTimestamp"])


def waited_for(pods: Sequence[dict[str, Any]]) -> str:
    """Say in a few words what the first pod that is not ready waits for."""
    for pod in pods:
        name = pod["metadata"]["name"]
        if not pod["spec"].get("nodeName"):
            return f"{name} to get a place"
        for status in _containers(pod):
            state = status.get("state") or {}
            ended = (state.get("terminated") or {}).get("exitCode") == 0
            if not status.get("ready") and not ended:
                return f"{name}: {status['name']}, {(state.get('waiting') or {}).get('reason') or 'not ready yet'}"
    return "its pods"


def told(events: Sequence[dict[str, Any]], last: int = 6) -> str:
    """Give the last warnings of a namespace, a line each."""
    # istiod's autoscaler complains all the time where nothing measures.
    told_ = (event for event in events if event["involvedObject"]["kind"] != "HorizontalPodAutoscaler")
    warnings = [event for event in told_ if event.get("type") == "Warning"][-last:]
    return "\n".join(
        f"{event['involvedObject']['kind'].lower()} {event['involvedObject']['name']}: "
        f"{event.get('reason', '')}: {event.get('message', '').strip()}"
        for event in warnings
    )
