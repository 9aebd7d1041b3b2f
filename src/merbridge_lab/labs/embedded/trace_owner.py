"""Keep the lines of the embedded lab in a trace: of tasks that are in its pods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.dataplane import owned_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from merbridge_lab.trace_event import TraceEvent


def drained(events: Iterable[TraceEvent | None], lab: str) -> tuple[TraceEvent, ...]:
    """Return those of `events` that are the lab's own; skip None."""
    return owned_events.drained(events, own_tasks(lab))


def own_tasks(lab: str) -> Callable[[int], bool | None]:
    """Return a function that tells whether a task is one of the pods that the lab's dataplane serves."""
    return owned_events.tasks(lambda place: f"/{lab}/mesh/" in f"{place}/")
