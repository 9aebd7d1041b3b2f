"""Follow the trace, all of it or what one pod or one request has to do with."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from merbridge_lab import accesslog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from merbridge_lab.dataplane.events import TraceEvent
    from merbridge_lab.drivers.embedded.lab import EmbeddedLab

#: Events kept until it is known whether they belong to the request that is looked for.
_KEPT = 20_000


def follow(lab: EmbeddedLab, *, pod: str | None = None, nonce: str | None = None) -> Iterator[TraceEvent]:
    """Give the trace's events as they come, until interrupted.

    `pod` leaves only connections dialled in that pod. `nonce` leaves only those that carried the request with this
    x-request-id; that is known when the sidecars have logged it, so its events come a little later, all together.
    """
    events = lab.dataplane.follow_trace()
    if pod is not None:
        events = _of_pod(events, lab.workload(pod).pod.spec.ip)
    return _of_request(lab, events, nonce) if nonce is not None else events


def _of_pod(events: Iterator[TraceEvent], address: str) -> Iterator[TraceEvent]:
    """Leave the connections that come from `address`; what happens before that is seen is kept until then."""
    early: dict[int, list[TraceEvent]] = {}
    mine: set[int] = set()
    for event in events:
        if event.kind == "established":
            before = early.pop(event.pair, [])
            if event.ip == address:
                mine.add(event.pair)
                yield from before
        if event.pair in mine:
            yield event
        elif event.kind in ("connect", "wanted"):
            early.setdefault(event.pair, []).append(event)


def _of_request(lab: EmbeddedLab, events: Iterator[TraceEvent], nonce: str) -> Iterator[TraceEvent]:
    """Leave the connections that the access logs name for the request `nonce`, by their sources."""
    kept: deque[TraceEvent] = deque(maxlen=_KEPT)
    mine: set[int] = set()
    for event in events:
        if event.pair in mine:
            yield event
            continue
        kept.append(event)
        sources = {
            source
            for line in accesslog.parse_all("\n".join(line.partition(": ")[2] for line in lab.logged([nonce])))
            for source in (line.downstream_remote, line.upstream_local)
        }
        found = {one.pair for one in kept if one.kind == "established" and f"{one.ip}:{one.port}" in sources}
        if found - mine:
            mine |= found
            yield from (one for one in kept if one.pair in mine)
            kept = deque((one for one in kept if one.pair not in mine), maxlen=_KEPT)
