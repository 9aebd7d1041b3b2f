"""Follow the dataplane's trace in a buffer of one's own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from merbridge_lab import signals
from merbridge_lab.adapters.tracefs import Instance
from merbridge_lab.dataplane import trace
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from merbridge_lab.trace_event import TraceEvent

#: How often a reader of the trace checks whether it was interrupted, in seconds.
_LOOK_UP = 0.2


class Traced(Protocol):
    """What writes the trace: a dataplane, of a lab or of a node."""

    @property
    def attached(self) -> bool:
        """Report whether anything is attached."""

    debug: bool


def follow(tracefs: Path, owner: str, traced: Traced) -> Iterator[TraceEvent | None]:
    """Yield the trace's events as they arrive, until interrupted, from a buffer that exists only for this.

    If nothing arrives for a moment, yield None. The own buffer takes nothing from others who read the trace. If debug
    output is off, it is switched on meanwhile. Raises LabError.
    """
    if not traced.attached:
        raise LabError("no eBPF is attached, so there is no trace", hint="merlab up", id="dataplane.incomplete")
    own = Instance(tracefs, f"{owner}-trace-{os.getpid()}")
    was_on = traced.debug
    # Held open, the mount allows removal of the instance even after `merlab down` has unmounted it.
    with own.kept() as remove:
        try:
            own.enable()
            traced.debug = True
            with own.following() as take:
                while traced.attached:
                    signals.checkpoint()
                    lines = take(_LOOK_UP)
                    if not lines:
                        yield None
                    for line in lines:
                        event = trace.parse(line)
                        if event is not None:
                            yield event
        finally:
            with signals.shielded():
                if traced.attached and not was_on:
                    traced.debug = False
                remove()
