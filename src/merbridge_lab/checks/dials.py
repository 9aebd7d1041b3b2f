"""Connections other than curl's: IPv6 sockets, and plain TCP (P7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.api import Finding, Reading, fails, holds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.dial_results import Dial


def assess_carried(client: str, dials: Sequence[Dial]) -> Finding:
    """Assess whether eBPF intercepts and carries connections of these kinds, as its map of connections shows."""
    evidence = tuple(reading for dial in dials for reading in _readings(client, dial))
    for dial in dials:
        if dial.unasked:
            continue
        if wrong := _wrong(client, dial):
            return fails(wrong, *evidence)
    told = [dial.how for dial in dials if not dial.unasked]
    why = f"also {' and '.join(told)}" if told else "no other kind of connection"
    return holds("; skipped, ".join([why, *unasked(dials)]), *evidence)


def unasked(dials: Sequence[Dial]) -> tuple[str, ...]:
    """List the kinds of connection that this machine does not have, and why; none of them was tested."""
    return tuple(f"not asked {dial.how}: {dial.unasked}" for dial in dials if dial.unasked)


def _wrong(client: str, dial: Dial) -> str | None:
    outbound = dial.legs.get("outbound")
    if not dial.served:
        return f"{client} was not answered {dial.how} ({dial.error or f'{dial.received} bytes came back'})"
    if outbound is None:
        return (
            f"eBPF did not intercept the connection of {client} {dial.how}: it has none from {dial.local} to"
            f" {dial.wanted}"
        )
    if dial.remote != dial.wanted:
        return (
            f"the app of {client}, {dial.how}, sees that it speaks to {dial.remote} instead of {dial.wanted}:"
            " getpeername is not answered"
        )
    if outbound.original != dial.wanted:
        return (
            f"the connection of {client} {dial.how} was meant for {dial.wanted}, but eBPF recorded {outbound.original}"
        )
    return _missing_leg(dial)


def _missing_leg(dial: Dial) -> str | None:
    for name in dial.needed:
        leg = dial.legs.get(name)
        if leg is None:
            return f"{dial.how}, eBPF carries no connection on the {name} leg"
        if not leg.from_dialling or not leg.from_accepting:
            return (
                f"{dial.how}, on the {name} leg, eBPF moved {leg.from_dialling} bytes there and {leg.from_accepting}"
                " bytes back"
            )
    return None


def _readings(client: str, dial: Dial) -> list[Reading]:
    if dial.unasked:
        return [Reading(f"app:{client}", "", None, None, f"not asked {dial.how}: {dial.unasked}")]
    asked = f"{dial.local} to {dial.wanted}, seen as {dial.remote}: {dial.sent} bytes sent, {dial.received} received"
    return [
        Reading(f"app:{client}", "bytes", 0, dial.received, f"{dial.how}: {asked}"),
        *(
            Reading(f"bpf:{client}/pairs/{name}", "bytes", 0, leg.from_dialling + leg.from_accepting, str(leg))
            for name, leg in dial.legs.items()
        ),
    ]
