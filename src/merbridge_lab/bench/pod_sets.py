"""What a lab brings for a benchmark: sets of pods of equal make, and what is read around a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from merbridge_lab.bench.generators import Place
    from merbridge_lab.bench.model import Way

#: The slots of the two equal sets, and of the one without sidecars.
SLOTS = ("A", "B")
DIRECT_SLOT = "D"


@dataclass(frozen=True)
class SidecarCounts:
    """What one sidecar has served so far: requests, answers of status 200, and raw TCP connections."""

    requests: int
    answered: int
    connections: int

    def since(self, before: SidecarCounts) -> SidecarCounts:
        """Return what was added since `before`."""
        return SidecarCounts(
            self.requests - before.requests, self.answered - before.answered, self.connections - before.connections
        )


@dataclass(frozen=True)
class Readings:
    """What is known of one set at a moment: None where there is no sidecar.

    `cpu_seconds` is what its pods have used. `redirected` are the connections of the client that ISTIO_REDIRECT has
    sent to its sidecar. `ebpf` are the dataplane's counters of the client, by name; empty if it does not serve it.
    """

    cpu_seconds: float
    client: SidecarCounts | None
    server: SidecarCounts | None
    redirected: int
    ebpf: Mapping[str, int]


class PodSet(Protocol):
    """A client and a server."""

    @property
    def place(self) -> Place:
        """Where the generators find the server and their files."""

    def run(self, argv: Sequence[str], timeout: float) -> str:
        """Run `argv` as the client's app and return its output; it may end by SIGINT. Raises LabError."""

    def start(self, argv: Sequence[str]) -> None:
        """Start `argv` as the client's app in the background; it ends by itself. Raises LabError."""

    def settle(self) -> str:
        """Wait until what `start` started has ended, and return its output. Raises LabError."""

    def read(self) -> Readings:
        """Return what is known of the set now. Raise LabError if something could not be read."""


class PodSets(Protocol):
    """All sets of a benchmark, by slot. In the beginning, all go by the rules.

    `removal` is about how many seconds it takes to remove them.
    """

    removal: float

    @property
    def sets(self) -> Mapping[str, PodSet]:
        """The sets by slot: "A", "B" and, if asked for, "D"."""

    @property
    def machine(self) -> Mapping[str, str]:
        """What the lab knows of the machine and of itself: kernel, profile of legs, the server's name."""

    def enrol(self, slot: str | None) -> None:
        """Have eBPF serve exactly this set, and wait until no set has a connection from before. Raises LabError."""

    def used(self) -> float:
        """Return the seconds of processor time that the whole lab has used. Raises LabError."""

    def way(self, slot: str) -> Way:
        """Return how the set goes now."""
