"""What the dataplane's own trace shows of one request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.api import Check, Finding, Reading, fails, holds, value_of

if TYPE_CHECKING:
    from merbridge_lab.api import Lab, Observation


def lines_appear() -> Check:
    """Check that with debug on, a request leaves lines in the lab's trace."""
    return Check("trace.lines_appear", "a request leaves lines in the lab's trace", assess_lines, hint="merlab step 4")


def assess_lines(seen: Observation) -> Finding:
    """Count the lines."""
    told = [event for event in value_of(seen.trace) if not event.is_loss]
    reading = Reading("trace:merlab", "lines", 0, len(told), "\n".join(event.raw for event in told[:3]) or None)
    if not told:
        return fails("the dataplane wrote no line to the lab's trace during a request", reading)
    return holds(f"{len(told)} lines in the lab's trace", reading)


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
    """Assess the events that tell of the first request: each kind that the dataplane writes must be among them."""
    record = value_of(seen.interception.traced).get(seen.exchanges[0].nonce)
    if record is None:
        return fails(f"the trace does not show the request from {seen.exchanges[0].local}: no dataplane writes one")
    evidence = tuple(Reading(record.source, event.kind, None, event.sentence(), event.raw) for event in record.events)
    if record.unknown:
        return fails(record.unknown, *evidence)
    kinds = {event.kind for event in record.events}
    for kind, absent in record.needed:
        if kind not in kinds:
            return fails(absent, *evidence)
    return holds(record.says, *evidence)
