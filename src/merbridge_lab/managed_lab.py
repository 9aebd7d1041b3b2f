"""The ManagedLab protocol: a lab as the command line uses it, in addition to what steps use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from merbridge_lab.lab import Lab, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from merbridge_lab.bench.pod_sets import PodSets
    from merbridge_lab.model import Step
    from merbridge_lab.starting import Starting
    from merbridge_lab.trace_event import TraceContext, TraceEvent


class ManagedWorkload(Workload, Protocol):
    """A pod of the walkthrough, with the commands that enter it."""

    def app_argv(self, argv: Sequence[str]) -> list[str]:
        """Return the argv that runs `argv` as the pod's app, from this process. Raises LabError."""

    def shell(self, *, netns: bool) -> AbstractContextManager[tuple[list[str], str]]:
        """Yield the argv of a shell as the app (with `netns`: as root in the network namespace), and a welcome text."""

    def changes(self) -> list[str]:
        """Describe, one sentence each, how the rules differ from how they were created, and how to restore them."""


class ManagedLab(Lab, Protocol):
    """One lab as a whole: whether it exists, what is flushed, and what is left of it."""

    @property
    def exists(self) -> bool:
        """Report whether anything of the lab exists. Raise LabError if that cannot be determined."""

    def workload(self, name: str) -> ManagedWorkload:
        """Return a workload by name. Raise UsageError for one that does not exist."""

    def control_client(
        self, of: str = "sleep", *, sidecar: bool = True
    ) -> AbstractContextManager[Starting[ManagedWorkload]]:
        """Begin, for the duration of the block, a copy of `of` that the dataplane does not serve."""

    def bench_pods(self, *, direct: bool) -> AbstractContextManager[PodSets]:
        """Create pods for a benchmark, for the duration of the block; `direct` adds a set without sidecars.

        Raise LabError if this lab has none, or nothing serves its pods by eBPF.
        """

    def require_up(self) -> None:
        """Raise LabError, with the command that fixes it, if no lab is up or its set-up did not finish."""

    def choices(self) -> list[str]:
        """Describe, one sentence each, what was chosen because nothing was requested, where that is not the usual."""

    def recover(self) -> None:
        """Restore what a killed merlab left flushed or half-changed. Raises LabError, also for what `up` refuses."""

    def sweep(self) -> list[str]:
        """Remove what a killed merlab left of control and bench pods; return their names. Raises LabError."""

    def restore(self) -> list[str]:
        """Restore everything that is flushed; return the names of the workloads. Raises LabError."""

    def remove(self, timeout: float) -> None:
        """Remove everything that is left of the lab, within `timeout` seconds per component. Raises LabError."""

    def stays(self) -> list[str]:
        """Describe, one sentence each, what `down` leaves on purpose."""

    def states(self, steps: Sequence[Step]) -> list[str]:
        """Return for each step whether what it ensures holds now."""

    def dump(self) -> Mapping[str, Callable[[], Any]]:
        """Return the parts of a sysdump, each with the function that returns its content; none contains a key."""

    def keep_report(self, told: dict[str, Any]) -> None:
        """Store the report of the last run, for a sysdump. Raises nothing."""

    def trace_context(self) -> TraceContext:
        """Return what explains the trace: names of addresses, and the connections that exist now. Raises LabError."""

    def follow_trace(self, *, pod: str | None = None, nonce: str | None = None) -> Iterator[TraceEvent | None]:
        """Return the trace's events as they arrive, until interrupted. Raise LabError if none can arrive.

        None means that no event arrived for a moment.
        """
