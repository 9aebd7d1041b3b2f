"""What a dataplane brings to a lab on a cluster: everything that the lab does not ask of all dataplanes alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from merbridge_lab.labs.dataplane_strategy import DataplaneStrategy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from merbridge_lab.lab import ControlPair, Dataplane, ServerGroup
    from merbridge_lab.labs.kubernetes.connection import Access
    from merbridge_lab.labs.kubernetes.provider import Node
    from merbridge_lab.labs.kubernetes.settings import Settings
    from merbridge_lab.labs.kubernetes.workload import KubernetesWorkload
    from merbridge_lab.labs.request_batch import DataplaneEvidence
    from merbridge_lab.requirements import Requirement
    from merbridge_lab.trace_event import TraceEvent


@dataclass(frozen=True)
class Surroundings:
    """What a dataplane gets of its lab: the connection to the cluster, and three things that it may ask of the mesh.

    `renew` recreates the apps. `warm` sends the first requests, and returns how many were answered by 503 before all
    were served. `drain` ends the connections that the client's sidecar keeps, and returns whether none is left.
    """

    access: Access
    renew: Callable[[], None]
    warm: Callable[[], int]
    drain: Callable[[], bool]


class BenchSwitch(Protocol):
    """How a dataplane is told which bench pods it serves, and what it counted of them."""

    @property
    def legs(self) -> str:
        """Whose messages it moves, as `merlab bench` tells it."""

    def serve(self, slot: str | None, uids: Mapping[str, frozenset[str]]) -> None:
        """Serve exactly the pods of this set, None for none, and wait until it does. Raises LabError.

        `uids` are those of the pods of each set that may be served.
        """

    def counters(self, uid: str) -> Mapping[str, int]:
        """Return its counters of a pod; empty if it does not serve it. Raises LabError."""


class ClusterDataplane(DataplaneStrategy, Protocol):
    """One dataplane in a cluster. `Strategy(Surroundings)` creates it, and touches nothing.

    A lab calls `forget` after the cluster was created or started. Everything else may be called at any time, and raises
    LabError for what cannot be done now.
    """

    @property
    def intercepts(self) -> bool:
        """Report whether anything intercepts with it: False only for `none`."""

    @property
    def needs_this_kernel(self) -> bool:
        """Report whether the node must run on the kernel that this process sees."""

    @property
    def component(self) -> Dataplane:
        """The component that steps ensure, check and remove."""

    def requirements(self, settings: Settings) -> list[Requirement]:
        """Probe what it needs of this machine and of the cluster, for these settings."""

    def require_able(self) -> None:
        """Raise LabError if it could not be installed now, for a reason that `requirements` cannot know."""

    def images(self, settings: Settings) -> list[str]:
        """Return the images that it runs with these settings."""

    def evidence(self, servers: Sequence[KubernetesWorkload]) -> AbstractContextManager[DataplaneEvidence]:
        """Yield, for the duration of the block, what shows what it does to requests that `servers` answer."""

    def control_pair(self) -> ControlPair:
        """Return a client that it does not serve, with a server of its own; they stay until `close`."""

    def disposable_server(self) -> ServerGroup | None:
        """Return a server that it serves without any rule, and that stays until `close`; None if it serves none so."""

    def bench_switch(self) -> BenchSwitch:
        """Return what switches it for the pods of a benchmark. Raise LabError if it serves none, or all of them."""

    def trace_command(self, node: Node) -> str:
        """Return the command that a person would type to read its trace on a node."""

    def follow_trace(self, *, pod: str | None, nonce: str | None) -> Iterator[TraceEvent | None]:
        """Return the events of its trace as they arrive, until interrupted; only those of `pod` or `nonce`, if given.

        None may come if nothing arrived for a moment. Raise LabError if none can arrive.
        """

    def forget(self) -> None:
        """Look up again the next time what it knows of the cluster."""

    def close(self) -> None:
        """Remove what it created for as long as this merlab runs."""

    def sweep(self) -> None:
        """Remove what a killed merlab left of control pods and of readers of the trace."""

    def release(self) -> None:
        """Remove, before the lab goes, what it has beside the cluster. Whatever goes with the cluster may stay."""

    def require_gone(self) -> None:
        """Raise LabError if something of it is left after the lab is gone, or its component was removed."""
