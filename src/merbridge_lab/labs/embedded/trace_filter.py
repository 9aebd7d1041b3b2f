"""Follow the trace: all of it, or only the part of one pod or one request."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from merbridge_lab import accesslog
from merbridge_lab.labs.embedded.logs import Following
from merbridge_lab.trace_event import KnownConnection, TraceContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from merbridge_lab.labs.embedded.dataplane import EmbeddedDataplane
    from merbridge_lab.labs.embedded.host import Machine
    from merbridge_lab.labs.embedded.topology import PodSpec
    from merbridge_lab.trace_event import TraceEvent

#: Events that are buffered until it is known whether they match.
_KEPT = 20_000
#: How often the logs are read, and how far apart the sidecars' records of one request may be, in seconds: each sidecar
#: flushes once a second.
_LOOK, _RECORDS = 0.2, 3.0
#: How long a connection may take from connect() until it is accepted, in seconds.
_MAKING = 1.0


def follow(
    dataplane: EmbeddedDataplane, machine: Machine, *, pod: PodSpec | None = None, nonce: str | None = None
) -> Iterator[TraceEvent | None]:
    """Return the lab's events in the trace as they arrive, until interrupted; None if nothing arrived for a moment.

    `pod` keeps only connections that are dialled or
    accepted in that pod. `nonce` keeps only those that carried the request with this x-request-id. This is known when
    the sidecars have logged it, so its events come a little later, all together, in order.
    """
    events = dataplane.follow_trace()
    if nonce is not None:
        events = of_request(events, _named_for(machine.run / "pods", nonce))
    if pod is not None:
        live = {pair.id for pair in dataplane.pairs() if pod.name in pair.pods}
        events = of_pod(events, pod.ip, live)
    return events


def context(dataplane: EmbeddedDataplane, pods: Sequence[PodSpec]) -> TraceContext:
    """Return the names of the pods and of the services they know, and the connections that eBPF carries now."""
    names = {service.vip: service.name for pod in pods for service in pod.services}
    names |= {pod.ip: pod.name for pod in pods}
    known = tuple(KnownConnection(pair.id, pair.leg, *pair.pods) for pair in dataplane.pairs())
    return TraceContext(names, known, pairs=True)


def of_pod(events: Iterable[TraceEvent | None], address: str, live: Iterable[int] = ()) -> Iterator[TraceEvent | None]:
    """Keep the connections that come from `address` or are accepted at it, in the order of the trace.

    A sidecar dials its app from 127.0.0.6, so this connection is recognized when it is accepted; until then its events
    wait, and with them all later ones. `live` are connections known from before.
    """
    waiting: deque[TraceEvent] = deque(maxlen=_KEPT)
    mine, others = set(live), set[int]()
    for event in events:
        if event is None:
            # No more lines come: a connection that is still unknown was never established.
            yield from (each for each in waiting if _is_mine(each, mine, address))
            waiting.clear()
            yield None
            continue
        if event.is_loss:
            yield event
            continue
        waiting.append(event)
        if event.kind in ("established", "accepted"):
            if event.ip == address:
                mine.add(event.pair)
            elif event.kind == "accepted" and event.pair not in mine:
                others.add(event.pair)
        while waiting and (
            event.seconds - waiting[0].seconds > _MAKING
            or waiting[0].pair in mine
            or waiting[0].pair in others
            or not waiting[0].pair
        ):
            first = waiting.popleft()
            if _is_mine(first, mine, address):
                yield first
            if first.kind == "closed":
                others.discard(first.pair)


def _is_mine(event: TraceEvent, mine: set[int], address: str) -> bool:
    """Report whether an event belongs to a connection of the pod; one that is steered to it has no number yet."""
    return event.pair in mine if event.pair else event.ip == address


def of_request(
    events: Iterable[TraceEvent | None],
    sources: Callable[[], tuple[set[str], bool]],
    now: Callable[[], float] = time.monotonic,
) -> Iterator[TraceEvent | None]:
    """Keep the connections that the access logs name for one request, by source, in the order of the trace.

    `sources` returns those that are named by now, and whether all are. Until then, but no longer than sidecars take to
    write their records, nothing is yielded.
    """
    kept: deque[TraceEvent] = deque(maxlen=_KEPT)
    mine: set[int] = set()
    looked, deadline, given = 0.0, 0.0, False
    for event in events:
        if event is not None:
            if event.is_loss or (given and event.pair in mine):
                yield event
                continue
            kept.append(event)
            if now() - looked < _LOOK:
                continue
        looked = now()
        named, complete = sources()
        found = {each.pair for each in kept if each.kind == "established" and f"{each.ip}:{each.port}" in named}
        if found - mine:
            mine |= found
            deadline = deadline or looked + _RECORDS
        if mine and (complete or given or looked >= deadline):
            given = True
            yield from sorted((each for each in kept if each.pair in mine), key=lambda each: each.seconds)
            kept = deque((each for each in kept if each.pair not in mine), maxlen=_KEPT)
        if event is None:
            yield None


def _named_for(pods: Path, nonce: str) -> Callable[[], tuple[set[str], bool]]:
    """Return a function that reads on in all access logs and returns the sources that they name for the request."""
    followed: dict[Path, Following] = {}
    sources: set[str] = set()
    sides: set[bool] = set()

    def look() -> tuple[set[str], bool]:
        for log in pods.glob("*/access.log"):
            for text in followed.setdefault(log, Following(log)).lines():
                line = accesslog.parse(text) if nonce in text else None
                if line is not None:
                    sources.update((line.downstream_remote, line.upstream_local))
                    sides.add(line.inbound)
        return sources, len(sides) > 1

    return look
