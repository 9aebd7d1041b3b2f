"""Follow the dataplane's trace in a buffer of one's own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from merbridge_lab import signals
from merbridge_lab.adapters.tracefs import Instance
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from merbridge_lab.dataplane import Dataplane
    from merbridge_lab.labs.embedded.host import Machine
    from merbridge_lab.trace_event import TraceEvent

#: How often a reader of the trace checks whether it was interrupted, in seconds.
_LOOK_UP = 0.2


def follow(machine: Machine, manager: Dataplane) -> Iterator[TraceEvent | None]:
    """Yield the trace's events as they arrive, until interrupted, from a buffer that exists only for this.

    If nothing arrives for a moment, yield None. The own buffer takes nothing from others who read the trace. If debug
    output is off, it is switched on meanwhile. Raises LabError.
    """
    from merbridge_lab.dataplane import trace

    if not manager.attached:
        raise LabError("no eBPF is attached, so there is no trace", hint="merlab up", id="dataplane.incomplete")
    own = Instance(machine.tracefs, f"{machine.name}-trace-{os.getpid()}")
    was_on = manager.debug
    # Held open, the mount allows removal of the instance even after `merlab down` has unmounted it.
    with own.kept() as remove:
        try:
            own.enable()
            manager.debug = True
            with own.following() as take:
                while manager.attached:
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
                if manager.attached and not was_on:
                    manager.debug = False
                remove()
