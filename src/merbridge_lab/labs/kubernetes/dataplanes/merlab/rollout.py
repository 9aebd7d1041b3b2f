"""Wait for the agent's pods: until they are ready, or it is clear why they will not be."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from merbridge_lab import polling
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import diagnostics, rollout
from merbridge_lab.labs.kubernetes.dataplanes import daemonsets
from merbridge_lab.labs.kubernetes.dataplanes.merlab.manifest import CONTAINER, NAME, NAMESPACE, PATH

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.adapters.kubernetes_api import Api
    from merbridge_lab.labs.kubernetes.provider import NodeImages

#: How long the agent may take to start and to serve the pods, in seconds.
_STARTS = 90.0
_GONE = 60.0
_LOG_LINES = 12
#: Number of crashes after which it is hopeless.
_CRASHES = 2


def wait(api: Api, problems: Callable[[], list[str]], images: NodeImages, awaiting: str) -> None:
    """Wait until there are no problems. Raise LabError, early if there always will be."""
    began, memory = time.monotonic(), diagnostics.Memory()
    last: list[str] = ["it has not started yet"]
    failed: list[LabError] = []

    def done() -> bool:
        last[:] = problems()
        if last:
            failed[:] = _hopeless(api, time.monotonic() - began, images, memory)
        return not last or bool(failed)

    reached = polling.poll_until(done, timeout=_STARTS, every=0.3, awaiting=lambda: f"{awaiting}: {last[0]}")
    if failed:
        raise failed[0]
    if not reached:
        raise LabError(
            f"{awaiting} took more than {_STARTS:.0f} s: {last[0]}",
            hint=f"kubectl -n {NAMESPACE} logs ds/{NAME}",
            stderr=logged(api) or None,
            id="pod.not_ready",
        )


def _hopeless(api: Api, waited: float, images: NodeImages, memory: diagnostics.Memory) -> list[LabError]:
    found = api.find(PATH)
    pods = daemonsets.pods(api, found) if found else []
    for pod in pods:
        statuses = pod["status"].get("containerStatuses") or []
        if any(one.get("restartCount", 0) >= _CRASHES and not one.get("ready") for one in statuses):
            name = pod["metadata"]["name"]
            return [
                LabError(
                    f"merlab's agent ends again and again in {name}",
                    hint=f"kubectl -n {NAMESPACE} logs {name} --previous",
                    stderr=logged(api, previous=True) or None,
                    id="agent.crashed",
                )
            ]
    seen = diagnostics.diagnose(pods, waited, images, memory=memory)
    return [rollout.with_log(api, NAMESPACE, seen)] if seen else []


def logged(api: Api, *, previous: bool = False) -> str:
    """Return the end of the agent's log, or the last events if there is none."""
    with contextlib.suppress(LabError):
        found = api.find(PATH)
        for pod in daemonsets.pods(api, found) if found else ():
            name = pod["metadata"]["name"]
            return api.log(NAMESPACE, name, CONTAINER, tail=_LOG_LINES, previous=previous).strip()
        return diagnostics.told(api.events(NAMESPACE))
    return ""


def await_gone(api: Api, where: str, what: str) -> None:
    """Wait until an object is gone. Raises LabError."""
    if not polling.poll_until(lambda: api.find(where) is None, timeout=_GONE, every=0.3, awaiting=f"{what} to go"):
        raise LabError(f"{what} is still there after {_GONE:.0f} s", hint="merlab down", id="removal.failed")
