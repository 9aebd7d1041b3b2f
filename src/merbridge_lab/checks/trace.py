"""What the dataplane's own trace shows of one request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.api import Check, Finding, Reading, fails, holds, value_of

if TYPE_CHECKING:
    from merbridge_lab.api import Lab, Observation


def lines_appear() -> Check:
    """Check that with debug on, a request leaves lines in the lab's own tracefs instance."""
    return Check("trace.lines_appear", "a request leaves lines in the lab's trace", assess_lines, hint="merlab step 4")


def assess_lines(seen: Observation) -> Finding:
    """Count the lines."""
    told = value_of(seen.trace)
    reading = Reading("trace:merlab", "lines", 0, len(told), "\n".join(event.raw for event in told[:3]) or None)
    if not told:
        return fails("the dataplane wrote no line to the lab's trace during a request", reading)
    return holds(f"{len(told)} lines in the lab's own tracefs instance", reading)


def debug_is_on() -> Check:
    """Check that the dataplane's debug flag is set in the kernel."""
    return Check("trace.debug_is_on", "the dataplane's debug flag is set", assess_debug, hint="merlab step 4")


def assess_debug(lab: Lab) -> Finding:
    """Read the flag back."""
    on = lab.dataplane.debug
    reading = Reading("dataplane:debug", "", None, int(on))
    return holds("debug is on", reading) if on else fails("the dataplane's debug flag is off", reading)


def tells_the_request() -> Check:
    """Check that the trace shows this request intercepted, its original destination looked up, its bytes moved."""
    return Check(
        "trace.tells_the_request",
        "the trace shows this request: intercepted, original destination asked, bytes moved socket to socket",
        assess_told,
        hint="merlab step 4",
    )


def assess_told(seen: Observation) -> Finding:
    """Assess the trace of the pair that the app's connection opened."""
    exchange = seen.exchanges[0]
    if seen.noted is not None:
        return assess_told_by_address(seen)
    port = int(exchange.local.rpartition(":")[2] or 0)
    mine = {event.pair for event in value_of(seen.trace) if event.kind == "established" and event.port == port}
    told = [event for event in value_of(seen.trace) if event.pair in mine]
    evidence = tuple(Reading("trace:merlab", event.kind, None, event.sentence(), event.raw) for event in told)
    kinds = [event.kind for event in told]
    for kind, meaning in (
        ("connect", "no connect() of it was intercepted"),
        ("original_dst", "its original destination was not asked"),
        ("redirect", "no bytes of it were moved from socket to socket"),
    ):
        if kind not in kinds:
            return fails(f"the trace does not show the request from {exchange.local}: {meaning}", *evidence)
    return holds(f"{len(told)} lines show the connection from {exchange.local}", *evidence)


def assess_told_by_address(seen: Observation) -> Finding:
    """Assess whether lines name the address this request was meant for, if a trace names no connections.

    Payload lines may include those of other requests; the access logs and maps prove that it was this request.
    """
    exchange = seen.exchanges[0]
    wanted = seen.original_destinations("outbound").get(exchange.nonce)
    redirected = [event for event in value_of(seen.trace) if event.kind == "redirect"]
    connects = [
        event for event in value_of(seen.trace) if event.kind == "connect" and f"{event.ip}:{event.port}" == wanted
    ]
    told = [*connects, *(event for event in value_of(seen.trace) if event.kind != "connect")]
    evidence = tuple(Reading("trace:node", event.kind, None, event.sentence(), event.raw) for event in told)
    if wanted is None:
        return fails(
            f"the dataplane's map has no connection from {exchange.local} to {exchange.remote}: whatever the trace"
            " shows, this request was not intercepted",
            *evidence,
        )
    if not connects:
        return fails(f"the trace does not show the request to {wanted}: no connect() to it was intercepted", *evidence)
    if not redirected:
        return fails(
            f"the trace does not show the request to {wanted}: no bytes were moved from socket to socket", *evidence
        )
    return holds(
        f"{len(connects)} connects to {wanted} intercepted, {len(redirected)} messages moved from socket to socket;"
        " the original destination is in the map",
        *evidence,
    )
