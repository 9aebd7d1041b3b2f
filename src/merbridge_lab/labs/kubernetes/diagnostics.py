"""Why a pod does not come up: read from its state and from events, in words that show what to do."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters.image_reference import registry
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from merbridge_lab.error_ids import ErrorId
    from merbridge_lab.labs.kubernetes.provider import NodeImages

#: How long a pod may be unscheduled before that is hopeless, in seconds: another may just be ending.
_PLACE = 10.0
#: For how long pods from before may still exist, in seconds: their failures are not those of the new ones.
_OLD_ONES = 5.0
#: How long the pods of a Deployment may be refused before that is hopeless: the eleventh attempt comes 20 s after the
#: first.
_REFUSED = 25.0
_NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError"}
_CRASHED = {"CrashLoopBackOff", "CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
#: Number of crashes of a container before it is hopeless: a sidecar may give up once while its server starts.
_CRASHES = 2


@dataclass(frozen=True)
class PodFailure:
    """What is wrong with a pod. `container` is the one whose log tells more, if any."""

    what: str
    hint: str
    pod: str
    container: str = ""
    id: ErrorId = "pod.not_ready"

    def error(self, log: str = "") -> LabError:
        """Return it as an error, with the relevant part of the log."""
        return LabError(self.what, hint=self.hint, stderr=log or None, id=self.id)


class Memory:
    """What was seen during one wait, and since when, measured by a clock that nobody sets.

    The timestamps of the API are from the cluster's clock, which may differ from ours, and either may be set meanwhile.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: dict[str, float] = {}
        self._before: dict[str, object] | None = None

    def lasted(self, what: str) -> float:
        """Return for how many seconds `what` has been seen in this wait, including now."""
        now = self._clock()
        return now - self._first.setdefault(what, now)

    def over(self, what: str) -> None:
        """Record that `what` is no longer so."""
        self._first.pop(what, None)

    def news(self, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the events that were absent, or less frequent, at the first look: events are kept for an hour."""
        seen = {_key(event): (event.get("count"), event.get("lastTimestamp"), event.get("series")) for event in events}
        if self._before is None:
            self._before = dict(seen)
        return [event for event in events if self._before.get(_key(event)) != seen[_key(event)]]


def _key(event: dict[str, Any]) -> str:
    return str(event["metadata"].get("uid") or event["metadata"].get("name"))


def diagnose(
    pods: Iterable[dict[str, Any]],
    waited: float,
    images: NodeImages,
    *,
    now: bool = False,
    memory: Memory | None = None,
) -> PodFailure | None:
    """Find a failure that will not go away by itself, after so many seconds of waiting; with `now`, any failure.

    `images` tells how a missing image gets into the node. `memory` is that of this wait. Without one, everything is
    assumed to be unchanged since the wait began.
    """
    told = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    unplaced = {pod["metadata"]["name"]: _unplaced(pod, memory) for pod in told}
    if waited < _OLD_ONES:
        return None
    for pod in told:
        lasted = unplaced[pod["metadata"]["name"]]
        hopeless = lasted is not None and (now or (waited if memory is None else lasted) > _PLACE)
        found = (_no_place(pod) if hopeless else None) or _no_container(pod, images, now=now)
        if found is not None:
            return found
    return None


def _unplaced(pod: dict[str, Any], memory: Memory | None) -> float | None:
    """Return for how long a pod has been unscheduled; None if it is scheduled."""
    key = f"{pod['metadata'].get('uid') or pod['metadata']['name']} has no place"
    if _refusal_of_place(pod) is None:
        if memory is not None:
            memory.over(key)
        return None
    return 0.0 if memory is None else memory.lasted(key)


def _refusal_of_place(pod: dict[str, Any]) -> str | None:
    for condition in pod["status"].get("conditions") or []:
        if (condition["type"], condition["status"]) == ("PodScheduled", "False"):
            return str(condition.get("message", ""))
    return None


def _no_place(pod: dict[str, Any]) -> PodFailure:
    name = pod["metadata"]["name"]
    return PodFailure(
        f"the pod {name} cannot be scheduled on the node: {_refusal_of_place(pod)}",
        "kubectl describe nodes",
        name,
        id="pod.not_scheduled",
    )


def _no_container(pod: dict[str, Any], images: NodeImages, *, now: bool) -> PodFailure | None:
    name = pod["metadata"]["name"]
    for status in _containers(pod):
        waiting = (status.get("state") or {}).get("waiting") or {}
        reason, said = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _NO_IMAGE:
            return _without_image(name, status["image"], f"{reason} {_short(said)}", images)
        crashed = status.get("restartCount", 0) >= (1 if now else _CRASHES)
        if reason in _CRASHED and (crashed or reason != "CrashLoopBackOff"):
            return PodFailure(
                f"the container {status['name']} of {name} does not run: {reason} {said}".rstrip(),
                f"kubectl -n {pod['metadata']['namespace']} logs {name} -c {status['name']}",
                name,
                status["name"],
            )
    return None


def _containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    status = pod["status"]
    yield from status.get("initContainerStatuses") or []
    yield from status.get("containerStatuses") or []


def _without_image(pod: str, image: str, said: str, images: NodeImages) -> PodFailure:
    return PodFailure(
        f"the image {image} of {pod} cannot be pulled from {registry(image)}: {said}".rstrip(),
        f"{images.pull_command(image)} && {images.load_command([image])}  # or name another: --image, --istio-hub",
        pod,
        id="image.not_pulled",
    )


def _short(said: str) -> str:
    """Return only the end of a message of the kubelet, where the cause is: it wraps it in several layers of names."""
    return re.sub(r"\s+", " ", said.rpartition(": failed to ")[2])[:300]


def never_ready(pods: Sequence[dict[str, Any]], name: str, seconds: float) -> PodFailure:
    """Describe which container has been running for `seconds` and is not ready; its log should tell why."""
    for pod in pods:
        for status in _containers(pod):
            if "running" in (status.get("state") or {}) and not status.get("ready"):
                return PodFailure(
                    f"the container {status['name']} of {pod['metadata']['name']} runs, but is not ready after"
                    f" {seconds:.0f} s",
                    f"kubectl describe pod {pod['metadata']['name']}",
                    pod["metadata"]["name"],
                    status["name"],
                )
    return PodFailure(f"{name} is not ready after {seconds:.0f} s", "merlab status", name)


def all_run(pods: Sequence[dict[str, Any]]) -> bool:
    """Report whether every container of the pods exists and runs, or has ended successfully."""
    states = [status.get("state") or {} for pod in pods for status in _containers(pod)]
    ended = [(state.get("terminated") or {}).get("exitCode") == 0 for state in states]
    return bool(states) and all("running" in state or done for state, done in zip(states, ended, strict=True))


def refused(deployment: str, events: Sequence[dict[str, Any]], waited: float, memory: Memory) -> PodFailure | None:
    """Find out why a Deployment has had no pods at all for `waited` seconds: their creation was refused.

    Events are kept for an hour: those from before the first look are about other times.
    """
    mine = [event for event in memory.news(events) if _is_refusal(event, deployment)]
    if not mine or min(waited, memory.lasted(f"{deployment} is refused")) < _REFUSED:
        return None
    return PodFailure(
        f"no pod of {deployment} can be created: {mine[-1].get('message', '')}",
        f"kubectl -n {topology.ISTIO} get pods",
        deployment,
    )


def _is_refusal(event: dict[str, Any], deployment: str) -> bool:
    owner = event["involvedObject"]
    is_mine = owner["kind"] in ("ReplicaSet", "Deployment") and owner["name"].startswith(deployment)
    return is_mine and event.get("reason") == "FailedCreate"


def waited_for(pods: Sequence[dict[str, Any]]) -> str:
    """Describe in a few words what the first pod that is not ready waits for."""
    for pod in pods:
        name = pod["metadata"]["name"]
        if not pod["spec"].get("nodeName"):
            return f"{name} to be scheduled"
        for status in _containers(pod):
            state = status.get("state") or {}
            ended = (state.get("terminated") or {}).get("exitCode") == 0
            if not status.get("ready") and not ended:
                return f"{name}: {status['name']}, {(state.get('waiting') or {}).get('reason') or 'not ready yet'}"
    return "its pods"


def told(events: Sequence[dict[str, Any]], last: int = 6) -> str:
    """Return the last warnings of a namespace, a line each."""
    # istiod's autoscaler complains all the time if there is no metrics server.
    told_ = (event for event in events if event["involvedObject"]["kind"] != "HorizontalPodAutoscaler")
    warnings = [event for event in told_ if event.get("type") == "Warning"][-last:]
    return "\n".join(
        f"{event['involvedObject']['kind'].lower()} {event['involvedObject']['name']}: "
        f"{event.get('reason', '')}: {event.get('message', '').strip()}"
        for event in warnings
    )
