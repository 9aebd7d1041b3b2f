"""A request without any sidecar in the path: the 200 that proves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.api import Control, Finding, Reading, Verdict, fails, holds
from merbridge_lab.checks import mesh

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.api import Exchange, Observation


def assess_bypass(seen: Observation, strays: Sequence[str], later: Finding, *, told: bool) -> Finding:
    """Assess whether the app answered with no sidecar in the path: neither has a record, and the app saw the client.

    If apps do not report their peer (`told` is off), the answer must not carry headers of a sidecar.
    """
    readings: list[Reading] = [*mesh.assess_served(seen).evidence]
    control = Control("mesh.later_request_logged", Verdict.PASS if later.held else Verdict.FAIL, later.evidence)
    for exchange in seen.exchanges:
        if not exchange.served:
            return fails(
                f"{seen.who}, all flushed and without eBPF, was not answered by the app ({exchange})",
                *readings,
                control=control,
            )
        if not told and (marked := _sidecars_mark(exchange)):
            return fails(
                f"all flushed and without eBPF, a sidecar still answered ({marked})", *readings, control=control
            )
        if told and exchange.headers.get("x-peer") != exchange.local.rpartition(":")[0]:
            peer = exchange.headers.get("x-peer", "a peer that it does not name")
            return fails(
                f"all flushed and without eBPF, the app got the request from {peer}, not from {seen.who} itself",
                *readings,
                control=control,
            )
    if strays:
        return fails(
            f"all flushed and without eBPF, a sidecar still handled the request ({strays[0]})",
            *readings,
            control=control,
        )
    if not later.held:
        return fails(f"the control did not hold: {later.why}", *readings, control=control)
    return holds(
        "answered by the app itself, and no sidecar has a record of it: a 200 that proves nothing",
        *readings,
        control=control,
    )


def _sidecars_mark(exchange: Exchange) -> str:
    """Return the header that an Envoy adds to what it passes on; nothing if there is none."""
    headers = exchange.headers
    if "envoy" in headers.get("server", ""):
        return f"server: {headers['server']}"
    return next((f"{name}: {value}" for name, value in headers.items() if name.startswith("x-envoy-")), "")
