"""What a dataplane did to a batch of requests: one record, whichever dataplane it was.

A dataplane fills the record from its own evidence (counters, maps, a trace) with what it saw and with the words that
only it can choose. The checks compare the numbers and decide.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from merbridge_lab.evidence import Reading, Unread, value_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from merbridge_lab.trace_event import TraceEvent

#: App to its own sidecar, sidecar to sidecar, sidecar to its own app.
LEGS = ("outbound", "mesh", "inbound")
#: The directions of a leg. The request and the response of one request are at least one message each.
DIRECTIONS = 2


@dataclass(frozen=True)
class Counters:
    """A dataplane's counters around a batch: workload → counter → number; empty if nothing counts."""

    before: Mapping[str, Mapping[str, int]] | Unread = field(default_factory=dict)
    after: Mapping[str, Mapping[str, int]] | Unread = field(default_factory=dict)

    def reading(self, workload: str, name: str) -> Reading:
        """Return the counter `name` of `workload`; 0 if it does not exist. Raise UnreadError."""
        return Reading(
            f"bpf:{workload}/{name}",
            "bytes" if name.endswith("_bytes") else "events",
            value_of(self.before).get(workload, {}).get(name, 0),
            value_of(self.after).get(workload, {}).get(name, 0),
        )


@dataclass(frozen=True)
class Unseen:
    """Why not one connection was intercepted, if the dataplane can tell."""

    why: str
    evidence: tuple[Reading, ...] = ()


@dataclass(frozen=True)
class AppConnections:
    """The connections of the client's app that were intercepted at connect().

    `peer_is_loopback` is what the app must see as its peer: a loopback address where its sidecar listens, or the
    address that it dialled. `other_peer` is the sentence for the opposite, with {local} and {remote}.
    """

    intercepted: Reading | Unread
    peer_is_loopback: bool
    other_peer: str
    unseen: Unseen | Unread | None = None


@dataclass(frozen=True)
class Leg:
    """One leg. `connections` are those that the dataplane keeps, if it keeps them by leg.

    `directions` says whether the dataplane should accelerate what the dialling side sends, and what the accepting side
    sends. `not_served` is the reason if it accelerates neither.
    """

    name: str
    connections: Reading | Unread | None = None
    not_served: str = ""
    directions: tuple[bool, bool] = (True, True)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Flow:
    """Messages that went from socket to socket, in `directions` directions of legs, and their total `size` in bytes.

    `short` is the sentence for too few of them, with {moved} and {needed}. `sizes` are the readings of the bytes.
    """

    short: str
    directions: int
    messages: tuple[Reading, ...]
    size: int = 0
    sizes: tuple[Reading, ...] = ()

    @property
    def moved(self) -> int:
        """The number of messages."""
        return sum(reading.moved for reading in self.messages)

    @property
    def evidence(self) -> tuple[Reading, ...]:
        """All that was read of it."""
        return (*self.messages, *self.sizes)


@dataclass(frozen=True)
class Witness:
    """Flows that together are every direction of every served leg, from one kind of evidence.

    `says` opens the sentence about what was moved, with {messages} and {bytes}.
    """

    flows: tuple[Flow, ...]
    says: str

    def __str__(self) -> str:
        return self.says.format(
            messages=sum(flow.moved for flow in self.flows), bytes=sum(flow.size for flow in self.flows)
        )


@dataclass(frozen=True)
class RequestTrace:
    """The events of a trace that tell of one request, and the kinds that must be among them.

    `needed` has the sentence for each kind that is missing. `unknown` is the reason why no event can be of this
    request, "" if some can. `source` is that of their readings. `says` is the sentence if nothing is missing.
    """

    source: str
    events: tuple[TraceEvent, ...] = ()
    needed: tuple[tuple[str, str], ...] = ()
    says: str = ""
    unknown: str = ""


@dataclass(frozen=True)
class Interception:
    """What a dataplane did to a batch of requests of one client.

    `moved` are the independent witnesses of the payload; each must suffice, and the last one is quoted. `traced` maps a
    nonce to what the trace tells of this request. `left_to_tcp` counts, by workload, the directions of connections that
    the dataplane reports to have left to TCP. `refreshed` is how many messages it sent by TCP on purpose, because their
    connections had sent no packets for long. `few_connections` opens the sentence about legs with too few connections.
    """

    app: AppConnections
    legs: tuple[Leg, ...]
    moved: tuple[Witness, ...] | Unread = ()
    traced: Mapping[str, RequestTrace] | Unread = field(default_factory=dict)
    left_to_tcp: Mapping[str, int] | Unread = field(default_factory=dict)
    refreshed: int | Unread = 0
    counters: Counters = field(default_factory=Counters)
    few_connections: str = ""

    @property
    def served(self) -> tuple[Leg, ...]:
        """The legs that the dataplane should accelerate."""
        return tuple(leg for leg in self.legs if not leg.not_served)


def nothing(client: str) -> Interception:
    """Return the record of a batch of `client` where nothing intercepts."""
    return Interception(
        app=AppConnections(Counters().reading(client, "outbound_connects"), peer_is_loopback=False, other_peer=""),
        legs=tuple(Leg(name, not_served="nothing intercepts") for name in LEGS),
    )
