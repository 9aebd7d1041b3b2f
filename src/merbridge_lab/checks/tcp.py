"""What the kernel's TCP carried of a batch that eBPF claims to have moved: evidence that no BPF program writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.api import LEGS, Control, Finding, Reading, Verdict, fails, holds, value_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from merbridge_lab.api import Observation

#: From so many bytes on, a request or an answer went by TCP: a request names itself (x-request-id, 50 bytes alone), and
#: an answer has a status line and headers. Fewer bytes are TLS's close message (31 bytes) to an end that has closed: no
#: socket is left to hand it to. Seen once in 1200 connections.
_LEAST = 64
#: If eBPF is in doubt, it leaves a direction to TCP, and counts it. Never seen in 1200 connections on a busy machine.
#: If more than half of a leg went this way, nothing was shown to be moved, whatever is counted.
_HALF = 2


def assess_nothing(seen: Observation) -> Finding:
    """Assess whether TCP carried what eBPF claims to have moved; `why` continues a sentence about what was moved.

    Each direction of a connection that went by TCP must be one that the dataplane reports as left to TCP.
    """
    if seen.by_tcp is None:
        return holds("")  # this lab has no such witness
    carried = value_of(seen.by_tcp)
    promised = {leg.name: leg.directions for leg in seen.interception.served}
    evidence = [_reading(seen, leg, carried) for leg in LEGS]
    by_pod: dict[str, list[int]] = {}
    for nonce, legs in carried.items():
        for leg, ends in legs.items():
            senders = _senders(seen, nonce, leg)
            for sender, sent, claimed in zip(senders, ends, promised.get(leg, (False, False)), strict=True):
                if claimed and sent >= _LEAST:
                    by_pod.setdefault(sender, []).append(sent)
    for pod, given in by_pod.items():
        left = value_of(seen.interception.left_to_tcp).get(pod, 0)
        if len(given) > left:
            return fails(
                f"the counters of {pod} claim that eBPF moved the payload, and the wire does not confirm it: the"
                f" kernel's TCP carried {sum(given)} bytes of it, in {len(given)} directions of connections; eBPF"
                f" reports that it left {left} to TCP",
                *evidence,
            )
    for leg, directions in promised.items():
        moved = sum(
            all(sent < _LEAST for sent, claimed in zip(legs[leg], directions, strict=True) if claimed)
            for legs in carried.values()
            if leg in legs
        )
        if moved * _HALF < len(seen.exchanges):
            return fails(
                f"on the {leg} leg the kernel confirms that {moved} of {len(seen.exchanges)} requests bypassed TCP:"
                " the others went over the wire, or the kernel reports nothing about their connection",
                *evidence,
            )
    return _beside_control(seen, evidence)


def _beside_control(seen: Observation, evidence: list[Reading]) -> Finding:
    """Assess whether the same counter increases for the control client, which eBPF does not serve."""
    total = sum(reading.moved for reading in evidence)
    why = f", and {total} of them by TCP, as the kernel counts" if total else ", and none by TCP, as the kernel counts"
    if seen.control is None or seen.control.by_tcp is None:
        return holds(why, *evidence)
    told = _reading(seen.control, "outbound", value_of(seen.control.by_tcp))
    wanted = len(seen.control.exchanges) * _LEAST
    shown = told.moved >= wanted
    control = Control("redirect.twin_by_tcp", Verdict.PASS if shown else Verdict.FAIL, (told,))
    if not shown:
        return fails(
            f"the control did not hold: the kernel counts {told.moved} bytes by TCP for {seen.control.who}, which"
            " eBPF does not serve",
            *evidence,
            control=control,
        )
    return holds(why, *evidence, control=control)


def _reading(seen: Observation, leg: str, carried: Mapping[str, Mapping[str, tuple[int, int]]]) -> Reading:
    ends = [legs[leg] for legs in carried.values() if leg in legs]
    return Reading(
        f"sock_diag:{seen.client}/{leg}/tcpi_bytes_sent", "bytes", 0, sum(map(sum, ends)), f"{len(ends)} connections"
    )


def _senders(seen: Observation, nonce: str, leg: str) -> tuple[str, str]:
    """Return the pods that own the sockets of the dialling and the accepting end of a leg."""
    server = value_of(seen.server_log)[nonce][0] if leg != "outbound" else seen.client
    return (server if leg == "inbound" else seen.client, server)
