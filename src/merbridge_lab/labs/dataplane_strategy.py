"""What a dataplane brings to a lab, whichever lab and dataplane it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from merbridge_lab import interception

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.observation import Batch
    from merbridge_lab.trace_event import TraceEvent


class DataplaneStrategy(Protocol):
    """One dataplane, as a lab uses it beside its component (lab.Dataplane). The lab never asks which one it is."""

    @property
    def name(self) -> str:
        """The name of the dataplane, as --dataplane and `merlab status` have it."""

    @property
    def capabilities(self) -> frozenset[str]:
        """The capabilities that a lab has by this dataplane."""

    def why_missing(self, capability: str) -> str:
        """Explain in one sentence why a lab with this dataplane lacks `capability`."""

    def fingerprint(self) -> dict[str, str]:
        """Return what must not change of it during a proof, each by name. Raises LabError."""

    def describe(self) -> dict[str, object]:
        """Return its state as `merlab status --json` prints it. Raises nothing."""

    def dump(self) -> dict[str, Callable[[], object]]:
        """Return its own parts of a sysdump, each with the function that returns its content. Raises LabError."""


class NoEvidence:
    """What a batch shows of a dataplane that is not there: nothing intercepts."""

    def begin(self) -> None:
        """Take no readings."""

    def trace(self) -> tuple[TraceEvent, ...]:
        """Return nothing."""
        return ()

    def interception(self, batch: Batch) -> interception.Interception:
        """Return the record of a batch where nothing intercepts."""
        return interception.nothing(batch.client)
