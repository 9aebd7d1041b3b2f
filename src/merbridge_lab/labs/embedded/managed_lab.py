"""The embedded lab as a whole: is it there, is it flushed, what is left of it."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from merbridge_lab import signals
from merbridge_lab.adapters import iptables, netns
from merbridge_lab.adapters.files import write_atomic
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import (
    control_pods,
    saved_rules,
    status,
    trace_filter,
)
from merbridge_lab.labs.embedded.lab import EmbeddedLab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from merbridge_lab.dataplane.trace import TraceEvent
    from merbridge_lab.model import Step


class ManagedEmbeddedLab(EmbeddedLab):
    """The ManagedLab protocol over namespaces on this machine."""

    def present_backend(self) -> str | None:
        """Say in which backend the rules of the lab that is up are; None where there is none, or no rules."""
        if not netns.is_pinned(self._node.netns):
            return None
        return iptables.backend_of(self._node.netns, "nat")

    def require_up(self) -> None:
        """Raise LabError when no lab is up."""
        if not self.machine.exists:
            raise LabError("no lab is up", hint="merlab up")

    def recover(self) -> None:
        """Clear up what is in the way of looking at the lab part by part.

        Control pods and outstanding flushes of a merlab that was killed; and a dataplane that is not whole, which would
        break the requests with which the mesh is judged, long before it is the dataplane's turn.
        """
        with signals.shielded():
            self.machine.uncover()  # first: what is changed next must be the lab's
            self.sweep()
            self.restore()
            if self.dataplane.attached:
                self.dataplane.recompile(proof=False)
            self.dataplane.pause_interception()

    def sweep(self) -> None:
        """Take away what a merlab that was killed left beside the lab: twins, and drafts of saves.

        What it left flushed stays so: that may be on purpose (`step 9 --keep`). What is covered is left.
        """
        with signals.shielded():
            if not self.machine.covers():
                control_pods.sweep(self.machine, self._node)
                saved_rules.delete_drafts(self.machine.saved)

    def restore(self) -> list[str]:
        """Put back whatever is flushed; give the names of the pods concerned.

        All are tried; the first one that cannot be put back is raised.
        """
        restored: list[str] = []
        first: LabError | None = None
        for workload in self.workloads():
            try:
                restored += [workload.name] if workload.rules.restore() else []
            except LabError as error:
                first = first or error
        if first is not None:
            raise first
        return restored

    @property
    def exists(self) -> bool:
        """Whether anything of the lab is there."""
        return self.machine.exists

    def remove(self, timeout: float) -> None:
        """Remove whatever is left of the lab, found by its name."""
        self.machine.remove(timeout)

    def stays(self) -> list[str]:
        """Say what `down` leaves on purpose: nothing."""
        return []

    def states(self, steps: Sequence[Step]) -> list[str]:
        """Say of each step whether what it ensures holds now."""
        states = []
        for step in steps:
            if step.kind.value == "demonstrate":
                states.append("shows")
            elif step.number > 0 and not self.machine.exists:
                states.append("not yet")
            else:
                states.append("holds" if all(check.evaluate(self).held for check in step.verify) else "does not hold")
        return states

    def describe(self) -> dict[str, Any]:
        """Return the state of the lab as `merlab status --json` has it."""
        return status.describe(self)

    def dump(self) -> dict[str, Callable[[], Any]]:
        """Name the parts of a sysdump, each with what gives its content; none of them holds a key."""
        return status.dump(self)

    def keep_report(self, told: dict[str, Any]) -> None:
        """Keep the report of the last run beside the lab's other files, for a sysdump."""
        if self.machine.run.is_dir() and self.machine.exists:
            with contextlib.suppress(OSError):
                write_atomic(self.machine.run / status.LAST_REPORT, json.dumps(told, default=str))

    def follow_trace(self, *, pod: str | None = None, nonce: str | None = None) -> Iterator[TraceEvent]:
        """Return the trace's events as they come; see trace_filter.follow."""
        spec = None if pod is None else self.workload(pod).pod.spec
        return trace_filter.follow(self.dataplane, self.machine.run / "pods", pod=spec, nonce=nonce)
