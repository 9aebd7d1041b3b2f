"""What upstream's map, run counts and trace show of a batch of requests, as the record that the checks read.

Upstream keeps the original destination of each connection in a map. It counts nothing itself: the kernel counts, for
the whole node, how often each program ran. Only the trace tells what was moved, and how much, if debug is on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.evidence import Reading, attempt, value_of
from merbridge_lab.interception import (
    DIRECTIONS,
    LEGS,
    AppConnections,
    Counters,
    Flow,
    Interception,
    Leg,
    RequestTrace,
    Unseen,
    Witness,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from merbridge_lab.evidence import Unread
    from merbridge_lab.observation import Batch, Exchange
    from merbridge_lab.trace_event import TraceEvent

    #: Nonce → leg → the original destination that the map holds for the connection, "ip:port".
    Destinations = Mapping[str, Mapping[str, str]]


def interception(
    batch: Batch, destinations: Destinations | Unread, counters: Counters, limits: Mapping[str, str]
) -> Interception:
    """Return what is shown of a batch; `limits` maps each leg that upstream is known not to accelerate to the reason.

    `counters` are the run counts, of the workload "node".
    """
    found = {leg: attempt(lambda leg=leg: _connections(batch, value_of(destinations), leg)) for leg in LEGS}  # type: ignore[misc]
    return Interception(
        app=AppConnections(
            intercepted=found["outbound"],
            # Upstream does not rewrite getpeername: the app sees the loopback as its peer, where its sidecar listens.
            peer_is_loopback=True,
            other_peer="the map holds the connection from {local}, but it went to {remote}, not to the sidecar",
            unseen=attempt(lambda: _unseen(batch, counters)),
        ),
        legs=tuple(Leg(name, found[name], limits.get(name, "")) for name in LEGS),
        moved=attempt(lambda: _moved(batch, counters, sum(leg not in limits for leg in LEGS))),
        traced=attempt(
            lambda: {
                each.nonce: _told_of(each, value_of(destinations).get(each.nonce, {}), value_of(batch.trace))
                for each in batch.exchanges
            }
        ),
        counters=counters,
        few_connections=f"the dataplane's map holds only some connections of {batch.client}",
    )


def _connections(batch: Batch, destinations: Destinations, leg: str) -> Reading:
    """Read how many of the batch's connections on a leg the map holds."""
    held = [legs[leg] for legs in destinations.values() if leg in legs]
    raw = ", ".join(dict.fromkeys(held)) or None
    return Reading(f"bpf:pair_original_dst/{batch.client}/{leg}", "connections", 0, len(held), raw)


def _unseen(batch: Batch, counters: Counters) -> Unseen:
    ran, first = counters.reading("node", "connect4_runs"), batch.exchanges[0]
    return Unseen(
        f"eBPF intercepted none of {len(batch.exchanges)} fresh connections of {batch.client}: its program ran"
        f" {ran.moved} times on the node, and its map holds none of them (first: {first.local} to {first.remote})",
        (ran,),
    )


def _moved(batch: Batch, counters: Counters, served: int) -> tuple[Witness, ...]:
    """Return how often the program that moves payload ran; if there is a trace, also what it tells of."""
    runs = Flow(
        short="the program that moves payload ran {moved} times for at least {needed} messages",
        directions=DIRECTIONS * served,
        messages=(counters.reading("node", "sk_msg_runs"),),
    )
    handed = Witness((runs,), "{messages} messages handed to the program that moves them,")
    told = value_of(batch.trace)
    if not told:
        return (handed,)
    lines = [event for event in told if event.kind == "redirect"]
    traced = Flow(
        short="the trace shows {moved} messages moved, of at least {needed}",
        directions=DIRECTIONS * served,
        messages=(Reading("trace:node/redirect", "messages", 0, len(lines), lines[0].raw),) if lines else (),
        size=sum(event.size for event in lines),
    )
    return handed, Witness((traced,), "{messages} messages, {bytes} bytes, moved from socket to socket")


def _told_of(exchange: Exchange, destinations: Mapping[str, str], trace: Sequence[TraceEvent]) -> RequestTrace:
    """Return the events that may tell of a request: a connect to the address that the map has for it, and no other.

    Other kinds of lines name no connection, so they may include those of other requests; the access logs and the map
    prove that it was this request.
    """
    wanted = destinations.get("outbound")
    connects = [event for event in trace if event.kind == "connect" and f"{event.ip}:{event.port}" == wanted]
    moved = sum(event.kind == "redirect" for event in trace)
    absent = f"the trace does not show the request to {wanted}"
    return RequestTrace(
        source="trace:node",
        events=(*connects, *(event for event in trace if event.kind != "connect")),
        needed=(
            ("connect", f"{absent}: no connect() to it was intercepted"),
            ("redirect", f"{absent}: no bytes were moved from socket to socket"),
        ),
        says=f"{len(connects)} connects to {wanted} intercepted, {moved} messages moved from socket to socket;"
        " the original destination is in the map",
        unknown=""
        if wanted
        else f"the dataplane's map has no connection from {exchange.local} to {exchange.remote}: whatever the"
        " trace shows, this request was not intercepted",
    )
