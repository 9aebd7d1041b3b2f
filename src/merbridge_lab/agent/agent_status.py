"""What `merlab agent status` and its likes read: from the pins and from the node's disk, not from the agent."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from merbridge_lab import __version__
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from merbridge_lab.agent.node_state import NodeState
    from merbridge_lab.agent.tracked_pod import TrackedPod
    from merbridge_lab.dataplane import Reconciler

#: The states of a switch: `None` if there are no programs that it would switch.
_SWITCH = {True: "on", False: "off", None: "not loaded"}

#: Only namespaces' labels are asked of it.
_API_AWAY = (
    "the API server does not answer; what is served goes on, and new pods of namespaces that are not known yet are left"
    " to the rules"
)


@dataclass(frozen=True)
class Sources:
    """Where the state of a node is: in the pins, and in files."""

    node: NodeState
    reconciler: Reconciler


def state(
    pods: list[TrackedPod],
    *,
    generation: int,
    ready: bool,
    runtime_problem: str,
    namespaces_asked: bool,
    programs_problem: str = "",
) -> dict[str, Any]:
    """Return the state that the agent writes to the node's disk."""
    return {
        "schema": 1,
        "version": __version__,
        "generation": generation,
        "ready": ready,
        "programs": programs_problem or None,
        "runtime": runtime_problem or None,
        "namespaces": "asked" if namespaces_asked else "not asked",
        "pods": [pod.describe() for pod in pods],
    }


def status(sources: Sources, *, api_silence: str = "") -> dict[str, Any]:
    """Return the state of a node, whether an agent runs or not; `api_silence` is why the API server does not answer."""
    told = sources.node.read()
    running = sources.node.is_running
    redirecting: bool | None = None  # nothing is loaded
    debug = False
    served: set[str] | None = None
    with contextlib.suppress(LabError):
        served = set(sources.reconciler.served())
        redirecting, debug = sources.reconciler.redirecting, sources.reconciler.debug
    pods = [_checked(pod, served) for pod in told.get("pods", ())]
    return {
        "schema": 1,
        "version": told.get("version", __version__),
        "generation": told.get("generation", 0),
        "running": running,
        "ready": running
        and bool(told.get("ready"))
        and not told.get("programs")
        and all(pod["reason_id"] != "not_attached" for pod in pods),
        "redirecting": redirecting,
        "debug": debug,
        "programs": told.get("programs"),
        "runtime": told.get("runtime"),
        "namespaces": told.get("namespaces", "not asked"),
        "api_server": f"{_API_AWAY}: {api_silence}" if api_silence else None,
        "pods": pods,
        "refused": dict(sorted(Counter(pod["reason_id"] for pod in pods if pod["reason_id"]).items())),
    }


def _checked(pod: dict[str, Any], served: set[str] | None) -> dict[str, Any]:
    """Return what the agent wrote of a pod, corrected by what the pins say now."""
    if pod["state"] == "served" and served is not None and pod["uid"] not in served:
        return {**pod, "state": "pending", "reason": "the pins do not have it", "reason_id": "not_attached", "legs": {}}
    return pod


def counters(sources: Sources) -> dict[str, dict[str, int]]:
    """Return the counters of every pod that is served, by NAMESPACE/NAME. Raises LabError."""
    names = {uid: f"{each.namespace}/{each.name}" for uid, each in sources.reconciler.served().items()}
    return {names[uid]: counted for uid, counted in sources.reconciler.counters().items() if uid in names}


def pairs(sources: Sources) -> list[dict[str, Any]]:
    """Return the live connections. Raises LabError."""
    return [asdict(pair) for pair in sources.reconciler.pairs()]


def programs(sources: Sources) -> dict[str, Any]:
    """Return the programs and links. Raises LabError."""
    return {
        "programs": [asdict(program) for program in sources.reconciler.programs()],
        "links": sources.reconciler.links(),
    }


def lines(told: dict[str, Any]) -> list[str]:
    """Return the state of a node for people."""
    is_running, is_ready = ("" if told[each] else "not " for each in ("running", "ready"))
    found = [
        f"agent {told['version']}, generation {told['generation']}: {is_running}running, {is_ready}ready",
        f"redirecting: {_SWITCH[told['redirecting']]}; debug: {_SWITCH[told['debug']]}",
        f"labels of namespaces: {told['namespaces']}",
    ]
    found += [str(told[each]) for each in ("programs", "runtime", "api_server") if told[each]]
    for pod in told["pods"]:
        why = pod["reason"] or pod["legs"].get("why", "")
        found.append(f"{pod['state']:8} {pod['namespace']}/{pod['name']}: {why}")
    return found
