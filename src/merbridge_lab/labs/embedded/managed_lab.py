"""The embedded lab as a whole: whether it exists, what is flushed, what is left of it."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from merbridge_lab import signals
from merbridge_lab.adapters import iptables, links, netns
from merbridge_lab.adapters.command import pasteable
from merbridge_lab.adapters.files import write_atomic
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import (
    control_pods,
    saved_rules,
    status,
    topology,
    trace_filter,
)
from merbridge_lab.labs.embedded.host import Machine
from merbridge_lab.labs.embedded.lab import EmbeddedLab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from merbridge_lab.model import Step
    from merbridge_lab.trace_event import TraceContext, TraceEvent


class ManagedEmbeddedLab(EmbeddedLab):
    """The ManagedLab protocol over namespaces on this machine."""

    def present_backend(self) -> str | None:
        """Return the backend that has the rules of the lab that is up; None if no lab is up, or it has no rules."""
        if not netns.is_pinned(self._node.netns):
            return None
        return iptables.backend_of(self._node.netns, "nat")

    def require_up(self) -> None:
        """Raise LabError if no lab is up."""
        if self.machine.exists:
            return
        for other in topology.lab_names():
            if Machine(other).exists:
                mend = ["unset", "MERLAB_NAME"] if other == topology.NAME else ["export", "MERLAB_NAME=" + other]
                what = f"no lab is up that is called {self.machine.name}; {other} is up"
                raise LabError(what, hint=pasteable(mend), id="lab.not_up")
        raise LabError("no lab is up", hint="merlab up", id="lab.not_up")

    def choices(self) -> list[str]:
        """Report that the lab keeps the pods that it was made with, if it has more than the walkthrough's."""
        if self._is_count_given or not self.replicas():
            return []
        return [f"pods: {len(self._mesh.pods)}, as the lab was made with; --pods changes that"]

    def recover(self) -> None:
        """Clean up what prevents a check of the lab component by component.

        This is: control pods and outstanding flushes of a merlab that was killed; and an incomplete dataplane, which
        would break the requests that test the mesh, long before the dataplane itself is checked. Whether its programs
        are those of the source is compiled beside the first steps, and awaited when the mesh is asked for the first
        time.
        """
        with signals.shielded():
            self.machine.uncover()  # first: what is changed next must be the lab's
            with contextlib.suppress(LabError):  # rules are restored first; then it is tried again
                self._compile()
            self.sweep()
            self.restore()
            if self._compile():
                links.load()  # what the checks of the lab need, while merlab would only wait for the compiler
            self.dataplane.pause_interception()

    def _compile(self) -> bool:
        """Begin to compile the source of an attached dataplane: nothing here takes longer. Raises LabError."""
        attached = self.dataplane.attached
        if attached:
            self.dataplane.recompile(proof=False)
        return attached

    def sweep(self) -> list[str]:
        """Remove what a killed merlab left beside the lab: control and bench pods, and drafts of saves.

        Its flushed rules stay flushed: that may be on purpose (`step 9 --keep`). Covered places are left alone. The
        names of the pods are returned.
        """
        removed: list[str] = []
        with signals.shielded():
            if not self.machine.covers():
                with contextlib.suppress(LabError):  # a dataplane that cannot be read: its checks report that
                    self.dataplane.forget_beside(topology.BENCH_NAMES)
                removed = control_pods.sweep(self.machine, self._node)
                saved_rules.delete_drafts(self.machine.saved)
        return removed

    def restore(self) -> list[str]:
        """Restore everything that is flushed; return the names of the pods.

        All are tried; then the first error is raised.
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
        """Report whether anything of the lab exists."""
        return self.machine.exists

    def remove(self, timeout: float) -> None:
        """Remove everything that is left of the lab, found by its name."""
        self.machine.remove(timeout)

    def stays(self) -> list[str]:
        """Return what `down` leaves on purpose: nothing."""
        return []

    def states(self, steps: Sequence[Step]) -> list[str]:
        """Return for each step whether what it ensures holds now."""
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
        """Return the state of the lab as `merlab status --json` prints it."""
        return status.describe(self)

    def dump(self) -> dict[str, Callable[[], Any]]:
        """Return the parts of a sysdump, each with the function that returns its content; none contains a key."""
        return status.dump(self)

    def keep_report(self, told: dict[str, Any]) -> None:
        """Store the report of the last run beside the lab's other files, for a sysdump."""
        if self.machine.run.is_dir() and self.machine.exists:
            with contextlib.suppress(OSError):
                write_atomic(self.machine.run / status.LAST_REPORT, json.dumps(told, default=str))

    def trace_context(self) -> TraceContext:
        """Return the names of the lab's addresses, and the connections that eBPF carries now."""
        return trace_filter.context(self.dataplane, [workload.pod.spec for workload in self.workloads()])

    def follow_trace(self, *, pod: str | None = None, nonce: str | None = None) -> Iterator[TraceEvent | None]:
        """Return the trace's events as they arrive; see trace_filter.follow."""
        spec = None if pod is None else self.workload(pod).pod.spec
        return trace_filter.follow(self.dataplane, self.machine, pod=spec, nonce=nonce)
