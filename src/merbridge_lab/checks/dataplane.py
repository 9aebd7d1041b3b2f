"""What eBPF did, by its own counters, leg by leg.

A request has three legs: outbound (app to its own sidecar), mesh (sidecar to sidecar) and inbound (sidecar to its own
app). On each leg, the request and the response are at least one message each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.api import Check, Finding, fails, holds, value_of
from merbridge_lab.checks import tcp
from merbridge_lab.checks.mesh import as_control, assess_both_sidecars, assess_closed_as_plain_text

if TYPE_CHECKING:
    from merbridge_lab.api import Observation, Witness


def intercepted() -> Check:
    """Check that every fresh connection of the client was intercepted at connect()."""
    return Check(
        "redirect.intercepted", "eBPF intercepts every connection of the app", assess_intercepted, hint="merlab step 3"
    )


def assess_intercepted(seen: Observation) -> Finding:
    """Assess whether the dataplane saw every connection of the client's app, and the app sees the peer that it must."""
    app, total = seen.interception.app, len(seen.exchanges)
    reading = value_of(app.intercepted)
    if not reading.moved and (unseen := value_of(app.unseen)) is not None:
        return fails(unseen.why, reading, *unseen.evidence)
    if reading.moved < total:
        return fails(f"eBPF intercepted {reading.moved} of {total} fresh connections of {seen.who}", reading)
    for exchange in seen.exchanges:
        if exchange.peer_is_loopback is not app.peer_is_loopback:
            return fails(app.other_peer.format(local=exchange.local, remote=exchange.remote), reading)
    return holds(f"{reading.moved} connections of {seen.who} intercepted at connect()", reading)


def assess_dialled_sidecar(seen: Observation) -> Finding:
    """Assess whether eBPF noted that the client's sidecar dialled pods of this node."""
    reading = seen.interception.counters.reading(seen.client, "mesh_connects")
    if not reading.moved:
        return fails(f"eBPF sent no connection of the sidecar of {seen.who} to a server's sidecar", reading)
    return holds(f"{reading.moved} connections between sidecars noted at connect()", reading)


def assess_steered(seen: Observation) -> Finding:
    """Assess whether a client that eBPF does not serve reached the servers' sidecars by their sk_lookup programs."""
    sidecars = assess_both_sidecars(seen)
    counters = seen.interception.counters
    readings = [counters.reading(server, "sk_lookup_assigned") for server in sorted(seen.servers)]
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
    """Assess the messages that went from socket to socket on each leg that the dataplane serves.

    Each witness must account for every direction of these legs.
    """
    if not seen.servers:
        return fails(f"no server's sidecar has a record of a request of {seen.who}: there was no payload to move")
    record, total = seen.interception, len(seen.exchanges)
    witnesses = value_of(record.moved)
    if not (witnesses and record.served):
        return fails(f"no dataplane shows that it moved payload of {seen.who}")
    connections = {leg.name: value_of(leg.connections) for leg in record.served if leg.connections is not None}
    evidence = [
        *connections.values(),
        *(reading for witness in witnesses for flow in witness.flows for reading in flow.evidence),
    ]
    if few := [f"{each.moved} of {total} on the {leg} leg" for leg, each in connections.items() if each.moved < total]:
        return fails(f"{record.few_connections}: {', '.join(few)}", *evidence)
    for witness in witnesses:
        if short := _short(witness, sum(sum(leg.directions) for leg in record.served), total):
            return fails(short, *evidence)
    confirmed = tcp.assess_nothing(seen)
    evidence += confirmed.evidence
    if not confirmed.held:
        return fails(confirmed.why, *evidence, control=confirmed.control)
    some = f"the {' and '.join(map(str, record.served))} leg{'s' if len(record.served) > 1 else ''}"
    served = "all three legs" if record.served == record.legs else some
    limits = "".join(f"; not on the {leg} leg: {leg.not_served}" for leg in record.legs if leg.not_served)
    return holds(f"{witnesses[-1]} on {served}{confirmed.why}{limits}", *evidence, control=confirmed.control)


def _short(witness: Witness, wanted: int, requests: int) -> str:
    """Describe what a witness lacks; "" if each of the `wanted` directions carries a message of each request."""
    covered = sum(flow.directions for flow in witness.flows)
    if covered < wanted:
        return f"the readings tell of {covered} of {wanted} directions of the legs, so some payload may not have moved"
    return "; ".join(
        flow.short.format(moved=flow.moved, needed=flow.directions * requests)
        for flow in witness.flows
        if flow.moved < flow.directions * requests
    )


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
        return fails("no flushed control client sent a request: the batch alone proves nothing")
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
