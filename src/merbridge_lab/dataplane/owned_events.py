"""Keep the lines of one lab in a trace: the kernel writes those of all labs of the machine into every buffer.

A line does not name its lab, and labs use the same addresses. But a task that dials, sends or asks for an original
destination is in a cgroup of its lab, and its lines name the connection, which is known by a number of its own.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import cgroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from merbridge_lab.trace_event import TraceEvent

#: The events that happen in the task that the line names. The others happen as packets arrive, in any task.
_OF_A_TASK = frozenset({"connect", "original_dst", "redirect", "passed"})
#: How long it may take until a line of a task that still runs names a connection, in seconds.
_MAKING = 1.0
#: How many connections are remembered.
_REMEMBERED = 10_000
#: The first PID namespace (PROC_PID_INIT_INO in the kernel's include/linux/proc_ns.h). Traces have its PIDs.
_FIRST_PIDS = 0xEFFFFFFC


def of_lab(events: Iterable[TraceEvent | None], is_own: Callable[[int], bool | None]) -> Iterator[TraceEvent | None]:
    """Keep the events of connections whose tasks are the lab's own, in the order of the trace.

    `is_own` tells of a PID whether its task is; None if it has ended. Until a task that runs has been named for a
    connection, its events wait, and with them all later ones; if none is named, they are kept. So are events without a
    connection, if no task is named.
    """
    waiting: deque[TraceEvent] = deque()
    owned: dict[int, bool] = {}

    def keeps(event: TraceEvent) -> bool:
        if event.pair:
            return owned.get(event.pair, True)
        return event.kind not in _OF_A_TASK or is_own(event.pid) is not False

    for event in events:
        if event is None:
            # No more lines come, so no line of a task that runs names these connections.
            yield from filter(keeps, waiting)
            waiting.clear()
            yield None
            continue
        waiting.append(event)
        if event.pair and event.pair not in owned and event.kind in _OF_A_TASK:
            is_of_lab = is_own(event.pid)
            if is_of_lab is not None:
                owned[event.pair] = is_of_lab
        while waiting and (
            not waiting[0].pair or waiting[0].pair in owned or event.seconds - waiting[0].seconds > _MAKING
        ):
            first = waiting.popleft()
            if keeps(first):
                yield first
        while len(owned) > _REMEMBERED:
            del owned[next(iter(owned))]
    yield from filter(keeps, waiting)


def drained(events: Iterable[TraceEvent | None], is_own: Callable[[int], bool | None]) -> tuple[TraceEvent, ...]:
    """Return those of `events` that are the lab's own; skip None."""
    found = of_lab((event for event in events if event is not None), is_own)
    return tuple(event for event in found if event is not None)


def tasks(is_place: Callable[[str], bool]) -> Callable[[int], bool | None]:
    """Return a function that tells whether a task is in a cgroup for which `is_place` is true.

    None if the task has ended, or if merlab has PIDs of its own and cannot know.
    """
    if Path("/proc/self/ns/pid").stat().st_ino != _FIRST_PIDS:
        return lambda _pid: None

    def is_own(pid: int) -> bool | None:
        place = cgroup.of(pid)
        return is_place(place) if place else None

    return is_own
