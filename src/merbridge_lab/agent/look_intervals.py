"""When to look at a pod again, if nothing wakes the loop for it before."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merbridge_lab.agent.tracked_pod import TrackedPod

#: Seconds between looks at a pod that waits for its sidecar: in its first minute, and later.
_SOON, _LATER, _FIRST = 0.05, 0.1, 60.0
#: Seconds between looks at a pod whose cgroup has just changed.
CHANGED = 0.2
#: Seconds between looks at a pod that is served, and at one that is refused: what wakes nobody is seen then. And at one
#: that is not served and whose cgroup is not watched: nothing wakes the loop for it.
_SERVED, _REFUSED, _UNWATCHED = 180.0, 600.0, 5.0
#: How long a pod that could not be attached is left alone, in seconds.
_AGAIN = 5.0


def interval(pod: TrackedPod, now: float, *, is_watched: bool) -> float:
    """Return the seconds until the next look at a pod; `is_watched`: the loop is woken when its cgroup changes."""
    reason = pod.refusal.id if pod.refusal is not None else ""
    if reason == "no_listener":
        return _SOON if now - pod.woken < _FIRST else _LATER
    if reason in ("not_attached", "namespace_unknown", "unread", "rules_differ"):
        return CHANGED if now - pod.woken < 1.0 else _AGAIN
    if pod.state == "served":
        return _SERVED
    if now - pod.woken < 1.0:
        return CHANGED
    return _REFUSED if is_watched else _UNWATCHED
