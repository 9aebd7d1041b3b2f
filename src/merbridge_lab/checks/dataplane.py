"""What eBPF did, by its own counters, leg by leg.

A request has three legs: outbound (app to its own sidecar), mesh (sidecar to sidecar) and inbound (sidecar to its own
app). On each leg, the request and the response are at least one message each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.api import Check, Finding, Reading, fails, holds, value_of
from merbridge_lab.checks import tcp
from merbridge_lab.checks.mesh import as_control, assess_both_sidecars, assess_closed_as_plain_text
from merbridge_lab.istio_facts import INBOUND_PORT

if TYPE_CHECKING:
    from merbridge_lab.api import Observation


def intercepted() -> Check:
    """Check that every fresh connection of the client was intercepted at connect()."""
    return Check(
        "redirect.intercepted", "eBPF intercepts every connection of the app", assess_intercepted, hint="merlab step 3"
    )


def assess_intercepted(seen: Observation) -> Finding:
    """Assess the counter of rewritten connects in the client's namespace."""
    if seen.noted is not None:
        return assess_noted(seen)
    reading = seen.counter(seen.client, "outbound_connects")
    total = len(seen.exchanges)
    if reading.moved < total:
        return fails(f"eBPF intercepted {reading.moved} of {total} fresh connections of {seen.client}", reading)
    for exchange in seen.exchanges:
        if exchange.remote.startswith("127."):
            return fails(
                f"the app of {seen.client} sees that it speaks to {exchange.remote} instead of the address it dialled:"
                " getpeername is not answered",
                reading,
            )
    return holds(f"{reading.moved} connections of {seen.client} intercepted at connect()", reading)


def assess_noted(seen: Observation) -> Finding:
    """Assess whether the dataplane's map has the original destination of every connection of the client."""
    noted, total = seen.original_destinations("outbound"), len(seen.exchanges)
    reading = seen.original_destinations_reading("outbound")
    if not noted:
        ran = seen.counter("node", "connect4_runs")
        return fails(
            f"eBPF intercepted none of {total} fresh connections of {seen.client}: its program ran {ran.moved} times"
            f" on the node, and its map holds none of them (first: {seen.exchanges[0].local} to"
            f" {seen.exchanges[0].remote})",
            reading,
            ran,
        )
    if len(noted) < total:
        return fails(f"eBPF intercepted {len(noted)} of {total} fresh connections of {seen.client}", reading)
    for exchange in seen.exchanges:
        # Upstream does not rewrite getpeername: the app sees the loopback as its peer, where its sidecar listens.
        if not exchange.remote.startswith("127."):
            return fails(
                f"the map holds the connection from {exchange.local}, but it went to {exchange.remote},"
                " not to the sidecar",
                reading,
            )
    return holds(f"{total} connections of {seen.client} intercepted at connect()", reading)


def assess_dialled_sidecar(seen: Observation) -> Finding:
    """Assess whether eBPF sent the client's sidecar to the servers' sidecars: port 15006 at connect()."""
    reading = seen.counter(seen.client, "mesh_connects")
    if not reading.moved:
        return fails(f"eBPF sent no connection of the sidecar of {seen.client} to a server's sidecar", reading)
    return holds(f"{reading.moved} connections between sidecars sent to port {INBOUND_PORT} at connect()", reading)


def assess_steered(seen: Observation) -> Finding:
    """Assess whether a client that eBPF does not serve reached the servers' sidecars by their sk_lookup programs."""
    sidecars = assess_both_sidecars(seen)
    readings = [seen.counter(server, "sk_lookup_assigned") for server in sorted(seen.servers)]
    evidence = (*readings, *sidecars.evidence)
    if not sidecars.held:
        return fails(f"from outside, with the servers flushed: {sidecars.why}", *evidence)
    for reading in readings:
        if not reading.moved:
            server = reading.source.removeprefix("bpf:").partition("/")[0]
            return fails(f"sk_lookup steered no connection from outside to the sidecar of {server}", *evidence)
    steered = sum(reading.moved for reading in readings)
    return holds(f"{steered} connections from outside steered to the servers' sidecars by sk_lookup", *evidence)


def payload_moved() -> Check:
    """Check that on all three legs the payload went from socket to socket, past TCP/IP."""
    return Check(
        "redirect.payload_moved",
        "eBPF moves the payload from socket to socket on all three legs",
        assess_payload,
        hint="merlab up",
    )


def assess_payload(seen: Observation) -> Finding:
    """Assess the redirected messages and bytes of each leg, at the client and at the servers."""
    total = len(seen.exchanges)
    servers = sorted(seen.servers)
    if not servers:
        return fails(f"no server's sidecar has a record of a request of {seen.client}: there was no payload to move")
    if seen.noted is not None:
        return assess_moved_on_noted(seen)
    messages = {
        "outbound": ((seen.client,), 2 * total),
        "mesh, from the client": ((seen.client,), total),
        "mesh, from the servers": (tuple(servers), total),
        "inbound": (tuple(servers), 2 * total),
    }
    evidence: list[Reading] = []
    short: list[str] = []
    for leg, (workloads, needed) in messages.items():
        counter = leg.split(",")[0]
        readings = [seen.counter(workload, f"{counter}_redirected_messages") for workload in workloads]
        evidence += readings
        evidence += [seen.counter(workload, f"{counter}_redirected_bytes") for workload in workloads]
        moved = sum(reading.moved for reading in readings)
        if moved < needed:
            short.append(f"on the {leg} leg eBPF moved {moved} messages of at least {needed} ({', '.join(workloads)})")
    if short:
        return fails("; ".join(short), *evidence)
    moved_bytes = sum(reading.moved for reading in evidence if reading.unit == "bytes")
    confirmed = tcp.assess_nothing(seen)
    evidence += confirmed.evidence
    if not confirmed.held:
        return fails(confirmed.why, *evidence, control=confirmed.control)
    why = f"{moved_bytes} bytes moved from socket to socket, on all three legs{confirmed.why}"
    return holds(why, *evidence, control=confirmed.control)


def ebpf_took_over() -> Check:
    """Check that with the rules flushed, only eBPF brings the request into the mesh; without it, the request fails."""
    return Check(
        "redirect.ebpf_took_over",
        "flushed, it is eBPF that sends the request through the mesh; a flushed control client without it is closed",
        assess_took_over,
        hint="merlab step 3",
    )


def assess_took_over(seen: Observation) -> Finding:
    """Assess the payload and the sidecars' logs, beside the flushed control client."""
    if seen.control is None:
        return fails("no flushed control client was asked: the batch alone proves nothing")
    closed = assess_closed_as_plain_text(seen.control)
    control = as_control("mesh.closed_without_ebpf", closed)
    intercepted_ = assess_intercepted(seen)
    sidecars = assess_both_sidecars(seen)
    evidence = (*intercepted_.evidence, *sidecars.evidence)
    for finding in (intercepted_, sidecars):
        if not finding.held:
            return fails(finding.why, *evidence, control=control)
    if not closed.held:
        return fails(f"the control did not hold: {closed.why}", *evidence, control=control)
    return holds(f"{intercepted_.why}, both sidecars served; {closed.why}", *evidence, control=control)


def assess_moved_on_noted(seen: Observation) -> Finding:
    """Assess whether the dataplane's map has the connections of all legs, and its mover ran for each message.

    The mover counts for the whole node. Only the trace tells what it moved, and how much, if debug is on.
    """
    total = len(seen.exchanges)
    served = [leg for leg in ("outbound", "mesh", "inbound") if leg not in seen.limits]
    runs = seen.counter("node", "sk_msg_runs")
    told = value_of(seen.trace)
    lines = [event for event in told if event.kind == "redirect"]
    moved = sum(event.size for event in lines)
    traced = [Reading("trace:node/redirect", "messages", 0, len(lines), lines[0].raw)] if lines else []
    evidence = (*(seen.original_destinations_reading(leg) for leg in served), runs, *traced)
    short = [
        f"{len(seen.original_destinations(leg))} of {total} on the {leg} leg"
        for leg in served
        if len(seen.original_destinations(leg)) < total
    ]
    if short:
        return fails(f"the dataplane's map holds only some connections of {seen.client}: {', '.join(short)}", *evidence)
    needed = 2 * total * len(served)
    if runs.moved < needed:
        return fails(f"the program that moves payload ran {runs.moved} times for at least {needed} messages", *evidence)
    if told and len(lines) < needed:
        return fails(f"the trace tells of {len(lines)} messages moved, of at least {needed}", *evidence)
    legs = "all three legs" if not seen.limits else f"the {' and '.join(served)} legs"
    traced_ = f"{len(lines)} messages, {moved} bytes, moved from socket to socket"
    said = traced_ if told else f"{runs.moved} messages handed to the program that moves them,"
    limits = "".join(f"; not on the {leg} leg: {why}" for leg, why in seen.limits.items())
    return holds(f"{said} on {legs}{limits}", *evidence)
