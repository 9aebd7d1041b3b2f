"""Wait for upstream's pod: until it is ready, or it is clear why it will not be."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from merbridge_lab import polling
from merbridge_lab.adapters import kubernetes_api
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import diagnostics
from merbridge_lab.labs.kubernetes.dataplanes import daemonsets
from merbridge_lab.labs.kubernetes.dataplanes.merbridge import installation, manifest
from merbridge_lab.labs.kubernetes.dataplanes.merbridge.installation import NAMESPACE
from merbridge_lab.merbridge import log as words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from merbridge_lab.adapters.kubernetes_api import Api
    from merbridge_lab.labs.kubernetes.provider import NodeImages

Object = dict[str, Any]

#: How long it may take to start, in seconds: it compiles its programs then, which takes some ten seconds on one core.
_GONE = 60.0
_STARTS = 180.0
#: What the kubelet returns instead of the log of a container that it is removing.
_NOT_THERE = "unable to retrieve container logs"
#: Number of crashes after which it is hopeless. The crash over the cgroup is hopeless from the first: it does not go
#: away.
_CRASHES = 2


class Crashed(Exception):  # noqa: N818 - it is an outcome, and not always an error
    """Upstream's pod has ended: `why`, as far as its log is known, and the log."""

    def __init__(self, why: words.Crash | None, log: str, pod: str) -> None:
        super().__init__(pod)
        self.why, self.log, self.pod = why, log, pod


def log(api: Api, pod: Object, *, tail: int | None = None) -> str:
    """Return what the pod's container has printed, preceded by the output of the previous one, which ended."""
    meta, said = pod["metadata"], []
    container = manifest.main({"spec": {"template": pod}})["name"]
    for previous in (True, False):
        # There is no previous one, or none has started yet.
        with contextlib.suppress(LabError):
            told = api.log(meta["namespace"], meta["name"], container, tail=tail, previous=previous)
            said.append("" if told.startswith(_NOT_THERE) else told)
    # If a log is cut off, for example because the machine stopped, the kubelet returns zeros.
    return "".join(said[-1:] if _runs(pod) else said).replace("\0", "")


def _runs(pod: Object) -> bool:
    statuses = pod["status"].get("containerStatuses") or []
    return bool(statuses) and all("running" in (one.get("state") or {}) for one in statuses)


def _crashes(pod: Object) -> int:
    """Count how often its containers have ended with an error and do not run since.

    A running container is starting: that it ended before, with its node, is no crash.
    """
    statuses = (pod["status"].get("initContainerStatuses") or []) + (pod["status"].get("containerStatuses") or [])
    ended = (
        one.get("restartCount", 0) + bool(((one.get("state") or {}).get("terminated") or {}).get("exitCode"))
        for one in statuses
        if not one.get("ready") and "running" not in (one.get("state") or {})
    )
    return max(ended, default=0)


def wait(api: Api, problems: Callable[[], list[str]], images: NodeImages, after: frozenset[str] = frozenset()) -> None:
    """Wait until nothing is wrong with it any more. Raise Crashed, or LabError if it will not come up.

    Pods whose uid is in `after` are from before: their problems do not count. `images` tells how a missing image gets
    into the node.
    """
    began, memory = time.monotonic(), diagnostics.Memory()
    last: list[str] = ["it has not started yet"]
    ended: list[Crashed | LabError] = []

    def ready() -> bool:
        last[:] = problems()
        if not last:
            return True
        daemonset = api.get(installation.PATH)
        found = [pod for pod in daemonsets.pods(api, daemonset) if pod["metadata"]["uid"] not in after]
        ended[:] = _edited(daemonset) or _hopeless(api, found, time.monotonic() - began, images, memory)
        return bool(ended)

    awaiting = lambda: f"Merbridge to be ready: {last[0]}"  # noqa: E731
    done = polling.poll_until(ready, timeout=_STARTS, every=0.5, awaiting=awaiting)
    if ended:
        raise ended[0]
    if not done:
        raise LabError(
            f"Merbridge was not ready within {_STARTS:.0f} s: {last[0]}",
            hint=f"kubectl -n {installation.NAMESPACE} logs ds/{installation.NAME}",
            stderr=_last_words(api),
            id="pod.not_ready",
        )


def _edited(daemonset: Object) -> list[Crashed | LabError]:
    """Describe that somebody changed it since it was applied: the result is not what is awaited."""
    edits = installation.edits(daemonset)
    if not edits:
        return []
    name = f"{installation.NAMESPACE}/{installation.NAME}"
    what = f"the DaemonSet {name} is not as merlab applied it any more: {'; '.join(edits)}"
    return [LabError(what, hint="merlab step 3", id="merbridge.foreign")]


def _hopeless(
    api: Api, found: Sequence[Object], waited: float, images: NodeImages, memory: diagnostics.Memory
) -> list[Crashed | LabError]:
    for pod in found:
        if crashes := _crashes(pod):
            said = log(api, pod)
            why = words.crash(said)
            if crashes >= _CRASHES or (why and why.cgroup):
                return [Crashed(why, said, pod["metadata"]["name"])]
    seen = diagnostics.diagnose(found, waited, images, memory=memory)
    if seen is not None:
        return [seen.error(diagnostics.told(api.events(installation.NAMESPACE)))]
    return []


def _last_words(api: Api) -> str | None:
    with contextlib.suppress(LabError):
        found = daemonsets.pods(api, api.get(installation.PATH))
        return words.tail(log(api, found[0])) if found else diagnostics.told(api.events(installation.NAMESPACE))
    return None


def crashed(found: Crashed) -> LabError:
    """Return a crash as an error: upstream's own lines, and the most similar known issue."""
    why = f": {found.why.what}" if found.why else ", for a reason that merlab does not know"
    near = f" The nearest known issue: {found.why.link}." if found.why and found.why.link else ""
    return LabError(
        f"Merbridge crashes{why}.{near}",
        hint=f"kubectl -n {installation.NAMESPACE} logs {found.pod} --previous",
        stderr=words.tail(found.log) or None,
        id="merbridge.crashed",
    )


def await_gone(api: Api, found: Object) -> None:
    """Wait until its pods have ended, and stop those whose cleanup hangs. Raises LabError."""
    awaiting = "Merbridge to remove its programs and end"
    if polling.poll_until(lambda: not daemonsets.every_pod(api, found), timeout=_GONE, every=0.3, awaiting=awaiting):
        return
    for pod in daemonsets.every_pod(api, found):  # its cleanup hangs: what it left is detached below
        api.delete(kubernetes_api.path("Pod", pod["metadata"]["name"], NAMESPACE), grace=0)
