"""The trace of a node, collected in a buffer of merlab's own: other readers of trace_pipe lose nothing."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab import signals
from merbridge_lab.adapters.tracefs import Instance
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes.dataplanes import node_view

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from merbridge_lab.labs.kubernetes.dataplanes.node_view import NodeView
    from merbridge_lab.trace_event import TraceEvent

#: The name of the buffer in the node's tracefs. No lab has such a name.
INSTANCE = "merlab.node"
#: How long to wait for lines before the check whether to go on, in seconds.
_BETWEEN = 0.2


def is_elsewhere(pid: int, node: str) -> bool:
    """Report whether a task is not in the cgroup `node`: the trace is the whole kernel's.

    A task that is gone may have been elsewhere.
    """
    try:
        return not node_view.is_below(node_view.cgroup_of(Path(f"/proc/{pid}")), node)
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def collecting(place: NodeView) -> Iterator[Instance]:
    """Collect trace lines in a buffer of our own for the duration of the block. Raises LabError."""
    place.mount_trace()
    sweep(place)
    # One per merlab: somebody may follow the trace meanwhile.
    instance = Instance(place.tracing, f"{INSTANCE}-{os.getpid()}")
    try:
        instance.enable()
    except OSError as error:
        raise LabError(
            f"the trace of the node cannot be read: {error.strerror} ({instance.path})",
            hint="merlab doctor",
            id="reading.failed",
        ) from error
    try:
        yield instance
    finally:
        instance.remove()


def follow(place: NodeView, parse: Callable[[str], TraceEvent | None]) -> Iterator[TraceEvent | None]:
    """Yield the events that `parse` finds in the lines, as they arrive, until interrupted. Raises LabError.

    If nothing arrives for a moment, yield None.
    """
    with collecting(place) as instance, instance.following() as take:
        while True:
            signals.checkpoint()
            events: list[TraceEvent | None] = [event for line in take(_BETWEEN) if (event := parse(line)) is not None]
            yield from events or [None]


def sweep(place: NodeView) -> None:
    """Remove the buffers that a killed merlab left; the names of those in use contain a live PID."""
    with contextlib.suppress(OSError):
        for path in Instance(place.tracing, INSTANCE).path.parent.iterdir():
            name, _, pid = path.name.rpartition("-")
            if name == INSTANCE and pid.isdigit() and not _is_merlab(int(pid)):
                Instance(place.tracing, path.name).remove()


def _is_merlab(pid: int) -> bool:
    try:
        return b"merlab" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
