"""What our own counters and trace show of a batch of requests, as the record that the checks read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.evidence import attempt, value_of
from merbridge_lab.interception import (
    LEGS,
    AppConnections,
    Counters,
    Flow,
    Interception,
    Leg,
    RequestTrace,
    Witness,
)
from merbridge_lab.shortage import taken

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from merbridge_lab.dataplane.legs import Legs
    from merbridge_lab.evidence import Unread
    from merbridge_lab.observation import Batch, Exchange
    from merbridge_lab.trace_event import TraceEvent

#: What the trace must tell of a request, and the meaning of its absence.
_TOLD = (
    ("connect", "no connect() of it was intercepted"),
    ("original_dst", "its original destination was not asked"),
    ("redirect", "no bytes of it were moved from socket to socket"),
)


class CounterEvidence:
    """The readings around one batch: `counters` reads all counters, `drain` takes the trace's events, if wanted."""

    def __init__(
        self,
        counters: Callable[[], Mapping[str, Mapping[str, int]]],
        legs: Legs,
        drain: Callable[[], tuple[TraceEvent, ...]] | None = None,
    ) -> None:
        self._counters, self._legs, self._drain = counters, legs, drain
        self._before: Mapping[str, Mapping[str, int]] | Unread = {}

    def begin(self) -> None:
        """Take the readings from before the first request; what is in the trace by now is discarded."""
        self.trace()
        self._before = taken("bpf:counters", self._counters)

    def trace(self) -> tuple[TraceEvent, ...] | Unread:
        """Return the events since `begin`; nothing if no trace is wanted."""
        return () if self._drain is None else taken("trace", self._drain)

    def interception(self, batch: Batch) -> Interception:
        """Take the readings from after the last request, and return the record."""
        return interception(batch, Counters(self._before, taken("bpf:counters", self._counters)), self._legs)


def interception(batch: Batch, counters: Counters, served: Legs) -> Interception:
    """Return what the counters, and the trace if there is one, show of a batch.

    `served` are the legs that should be redirected.
    """
    client = batch.client
    legs = _legs(served)
    return Interception(
        app=AppConnections(
            intercepted=attempt(lambda: counters.reading(client, "outbound_connects")),
            peer_is_loopback=False,
            other_peer=f"the app of {client} sees that it speaks to {{remote}} instead of the address it dialled:"
            " getpeername is not answered",
        ),
        legs=legs,
        moved=attempt(lambda: (_moved(counters, client, sorted(batch.servers), legs),)),
        traced=attempt(
            lambda: {each.nonce: _told_of(each, value_of(batch.trace), legs[0]) for each in batch.exchanges},
        ),
        left_to_tcp=attempt(lambda: {pod: _left(counters, pod) for pod in value_of(counters.after)}),
        refreshed=attempt(lambda: sum(_refreshed(counters, pod) for pod in value_of(counters.after))),
        counters=counters,
    )


def _legs(served: Legs) -> tuple[Leg, ...]:
    """Return the legs with their directions: the app dials on the outbound leg, and accepts on the inbound leg."""
    why = "" if served.out_of_app or served.into_app else served.why
    outbound, mesh, inbound = LEGS
    return (
        Leg(outbound, not_served=why, directions=(served.out_of_app, served.into_app)),
        Leg(mesh),
        Leg(inbound, not_served=why, directions=(served.into_app, served.out_of_app)),
    )


def _moved(counters: Counters, client: str, servers: Sequence[str], legs: Sequence[Leg]) -> Witness:
    """Count the redirected messages and bytes of each leg where they are sent, at the client and at the servers."""
    outbound, _, inbound = (sum(leg.directions) for leg in legs)
    flows = (
        *([_flow(counters, "outbound", "outbound", (client,), outbound)] if outbound else []),
        _flow(counters, "mesh", "mesh, from the client", (client,), 1),
        _flow(counters, "mesh", "mesh, from the servers", servers, 1),
        *([_flow(counters, "inbound", "inbound", servers, inbound)] if inbound else []),
    )
    return Witness(flows, "{bytes} bytes moved from socket to socket,")


def _flow(counters: Counters, leg: str, name: str, workloads: Sequence[str], directions: int) -> Flow:
    sizes = tuple(counters.reading(workload, f"{leg}_redirected_bytes") for workload in workloads)
    return Flow(
        short=f"on the {name} leg eBPF moved {{moved}} messages of at least {{needed}} ({', '.join(workloads)})",
        directions=directions,
        messages=tuple(counters.reading(workload, f"{leg}_redirected_messages") for workload in workloads),
        size=sum(reading.moved for reading in sizes),
        sizes=sizes,
    )


def _refreshed(counters: Counters, pod: str) -> int:
    return counters.reading(pod, "passed_refresh").moved


def _left(counters: Counters, pod: str) -> int:
    names = [name for name in value_of(counters.after)[pod] if name.startswith("passed_")]
    return sum(counters.reading(pod, name).moved for name in names)


def _told_of(exchange: Exchange, trace: Sequence[TraceEvent], outbound: Leg) -> RequestTrace:
    """Return the events of the pair that the app's connection opened: its source port identifies it."""
    expected = [(kind, meaning) for kind, meaning in _TOLD if kind != "redirect" or not outbound.not_served]
    port = int(exchange.local.rpartition(":")[2] or 0)
    mine = {event.pair for event in trace if event.kind == "established" and event.port == port}
    told = tuple(event for event in trace if event.pair in mine)
    absent = f"the trace does not show the request from {exchange.local}"
    lost = sum(event.size for event in trace if event.is_loss)
    is_whole = {kind for kind, _ in expected} <= {event.kind for event in told}
    return RequestTrace(
        source="trace:merlab",
        events=told,
        needed=tuple((kind, f"{absent}: {meaning}") for kind, meaning in expected),
        says=f"{len(told)} lines tell of the connection from {exchange.local}",
        unknown=f"{lost} events of the trace were lost: {absent}" if lost and not is_whole else "",
    )
