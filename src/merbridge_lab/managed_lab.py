"""The ManagedLab protocol: a lab as the command line has it, on top of what steps use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from merbridge_lab.lab import Lab, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from merbridge_lab.model import Step


class ManagedWorkload(Workload, Protocol):
    """A pod of the walkthrough, with the ways into it."""

    def app_argv(self, argv: Sequence[str]) -> list[str]:
        """Return the argv that runs `argv` as the pod's app, from this process. Raises LabError."""

    def shell(self, *, netns: bool) -> AbstractContextManager[tuple[list[str], str]]:
        """Return the argv of a shell as the app, or with `netns` as root in the network namespace; and a welcome."""

    def changes(self) -> list[str]:
        """List, a sentence each, what of the rules is not as it was made, and how to put it back."""


class ManagedLab(Lab, Protocol):
    """One lab as a whole: whether it is there, what is flushed, and what is left of it."""

    @property
    def exists(self) -> bool:
        """Whether anything of the lab is there. Raises LabError where that cannot be known."""

    def workload(self, name: str) -> ManagedWorkload:
        """Return a workload by name. Raises UsageError for one that does not exist."""

    def require_up(self) -> None:
        """Raise LabError, with the command that mends it, if no lab is up or it was left half-made."""

    def recover(self) -> None:
        """Put back what a killed merlab left flushed or half-changed. Raises LabError."""

    def sweep(self) -> None:
        """Remove what a killed merlab left of control pods. Raises LabError."""

    def restore(self) -> list[str]:
        """Put back whatever is flushed; return the names of the workloads concerned. Raises LabError."""

    def remove(self, timeout: float) -> None:
        """Remove whatever is left of the lab, within `timeout` seconds a part. Raises LabError."""

    def stays(self) -> list[str]:
        """List, a sentence each, what `down` leaves on purpose."""

    def states(self, steps: Sequence[Step]) -> list[str]:
        """Report of each step whether what it ensures holds now."""

    def dump(self) -> Mapping[str, Callable[[], Any]]:
        """Name the parts of a sysdump, each with what gives its content; none of them holds a key."""

    def keep_report(self, told: dict[str, Any]) -> None:
        """Keep the report of the last run, for a sysdump. Raises nothing."""

    def follow_trace(self, *, pod: str | None = None, nonce: str | None = None) -> Iterator[Any]:
        """Return the trace's events as they come, until interrupted. Raises LabError where there are none to come."""
