"""What the iptables rules did: the evidence is the client's ISTIO_REDIRECT.

While a server's rules are present, every new connection increments its ISTIO_INBOUND, with or without eBPF (nat
PREROUTING runs before the socket lookup). Early RETURNs in the client's ISTIO_OUTPUT also count. Only the client's
ISTIO_REDIRECT tells the two apart: a fresh connection adds 0 with eBPF, and 1 without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.api import Check, Finding, Reading, Verdict, fails, holds, place, skips, value_of
from merbridge_lab.checks.mesh import as_control, assess_both_sidecars, assess_closed_as_plain_text

if TYPE_CHECKING:
    from merbridge_lab.api import Observation, RuleSet

REDIRECT = "ISTIO_REDIRECT"


def assess_moved(seen: Observation) -> Finding:
    """Assess whether the rules sent every fresh connection of the client to its sidecar, and both sidecars served."""
    reading = seen.rule(REDIRECT)
    total = len(seen.exchanges)
    if not seen.before.istio:
        return fails(f"there are no ISTIO rules in {seen.who}", reading)
    if reading.moved < total:
        other = next((f" (one: {exchange})" for exchange in seen.exchanges if not exchange.served), "")
        return fails(
            f"{REDIRECT} of {seen.who} moved by {reading.moved} for {total} fresh connections"
            f" that no eBPF touches: the rules do not do the work{other}",
            reading,
        )
    sidecars = assess_both_sidecars(seen)
    if not sidecars.held:
        return fails(sidecars.why, reading, *sidecars.evidence)
    return holds(
        f"by the rules: {REDIRECT} of {seen.who} moved by {reading.moved} for {total} connections",
        reading,
        *sidecars.evidence,
    )


def do_the_work() -> Check:
    """Check that without eBPF, the rules send a connection to the sidecar."""
    return Check(
        "rules.do_the_work",
        "without eBPF, the rules send every connection to the sidecar",
        lambda seen: assess_moved(seen.control or seen),
        hint="merlab restore",
    )


def stood_still() -> Check:
    """Check that with eBPF, the rules are present but match nothing; the control client's same requests match them."""
    return Check(
        "rules.stood_still",
        "ISTIO_REDIRECT does not count with eBPF; it does for the control client",
        assess_stood_still,
        hint="merlab step 3",
    )


def assess_stood_still(seen: Observation) -> Finding:
    """Assess the client's counter and the control client's."""
    reading = seen.rule(REDIRECT)
    total = len(seen.exchanges)
    if seen.control is None:
        return fails(f"{REDIRECT} of {seen.who} was read without a control that shows it can move", reading)
    moved = assess_moved(seen.control)
    control = as_control("rules.move_without_ebpf", moved)
    if not seen.before.istio or not seen.after.istio:
        return fails(f"there are no ISTIO rules in {seen.who} that could be counted", reading, control=control)
    if reading.moved:
        return fails(
            f"{REDIRECT} of {seen.who} moved by {reading.moved} for {total} connections:"
            " the rules did the work, not eBPF",
            reading,
            control=control,
        )
    if not moved.held:
        return fails(f"the control did not hold: {moved.why}", reading, control=control)
    return holds(
        f"{REDIRECT} +0 for {total} fresh connections of {seen.who};"
        f" +{seen.control.rule(REDIRECT).moved} for {len(seen.control.exchanges)} of {seen.control.who},"
        " which eBPF does not serve",
        reading,
        control=control,
    )


def were_absent() -> Check:
    """Check that no nat rule was left, in any backend, just before the first request and just after the last."""
    return Check(
        "rules.were_absent",
        "not one ISTIO rule was left during the batch",
        lambda seen: assess_absent(seen, between=False),  # were_untouched covers the time in between
        hint="merlab step 9",
    )


def assess_absent(seen: Observation, *, between: bool = True) -> Finding:
    """Assess the rules as they were just before and just after the batch, and `between`, if that is known."""
    saved = seen.saved
    had = len(saved.istio) if saved else 0
    reading = Reading(seen.before.source(seen.client), "rules", had, None if seen.after.unread else len(seen.after.nat))
    for when, rules in (("before the first request", seen.before), ("after the last request", seen.after)):
        if besides := assess_besides(rules, f"in {seen.who} {when}"):
            return fails(besides, reading)
        if rules.nat:
            return fails(
                f"{len(rules.nat)} nat rules were present in {seen.who} {when}"
                f" although it had been flushed: {rules.nat[0]}",
                reading,
            )
        if rules.diverting:
            return fails(
                f"a rule outside nat that can redirect was present in {seen.who} {when}: {rules.diverting[0]}",
                reading,
            )
    if changed := seen.after.change_since(seen.before, between=between):
        return fails(
            f"the rules of {seen.who} changed while the requests ran, although they were flushed: {changed}", reading
        )
    if not had:
        return fails(f"there were no ISTIO rules in {seen.who} to flush", reading)
    return holds(f"{had} ISTIO rules before the flush, none in nat while the requests ran", reading)


def assess_besides(rules: RuleSet, where: str) -> str:
    """Describe what else than iptables' rules could stop packets; "" if nothing could."""
    if native := value_of(rules.native):
        return f"native nftables were present {where}: {native[0]}"
    return f"{altered[0]} {where}" if (altered := value_of(rules.altered)) else ""


def were_untouched() -> Check:
    """Check that nobody changed the rules between two requests, even briefly; skip if the kernel does not report it."""
    return Check(
        "rules.were_untouched",
        "the rules stayed flushed between any two requests",
        assess_untouched,
        hint="merlab step 9",
        unread=Verdict.SKIP,
    )


def assess_untouched(seen: Observation) -> Finding:
    """Assess the number that increases with every change of nftables' rules."""
    before, after = value_of(seen.before.generation), value_of(seen.after.generation)
    reading = Reading(f"nft:{seen.client}/generation", "", before, after)
    if before != after:
        return fails(f"the rules of {seen.who} changed while the requests ran, although they were flushed", reading)
    return holds(f"nobody touched the rules of {seen.who} while the requests ran", reading)


def assess_gone(workload: str, before: RuleSet, after: RuleSet) -> Finding:
    """Assess whether a server had no nat rule from `before` to `after`."""
    if altered := (*value_of(before.altered), *value_of(after.altered)):
        return fails(f"{altered[0]} in {workload}")
    left = [each for rules in (before, after) for each in (*value_of(rules.native), *rules.nat, *rules.diverting)]
    reading = Reading(before.source(workload), "rules", len(before.nat), len(after.nat))
    if left:
        return fails(f"{len(left)} rules were present in {workload} although it had been flushed: {left[0]}", reading)
    if changed := after.change_since(before):
        return fails(
            f"the rules of {workload} changed while the requests ran, although they were flushed: {changed}", reading
        )
    return holds(f"not one nat rule in {workload}", reading)


def flushed_is_closed() -> Check:
    """Check that without eBPF, a flush takes the request out of the mesh: the server's sidecar closes it."""
    return Check(
        "rules.flushed_is_closed",
        "flushed, every request is closed by the server's sidecar; with the rules present it was served",
        assess_flushed_closed,
        hint="merlab status",
    )


def assess_flushed_closed(seen: Observation) -> Finding:
    """Assess the closed connections, beside the same requests with the rules present."""
    closed = assess_closed_as_plain_text(seen)
    if seen.control is None:
        return fails(
            "no request was sent with the rules present: what is closed now may always be closed", *closed.evidence
        )
    moved = assess_moved(seen.control)
    control = as_control("rules.move_when_present", moved)
    if not closed.held:
        return fails(closed.why, *closed.evidence, control=control)
    if not moved.held:
        return fails(f"the control did not hold: {moved.why}", *closed.evidence, control=control)
    return holds(f"{closed.why}; present, {moved.why}", *closed.evidence, control=control)


def restored() -> Check:
    """Check that after the flush, the rules are the ones that were saved."""
    return Check("rules.restored", "the rules are back as they were", assess_restored, hint="merlab restore")


def assess_restored(seen: Observation) -> Finding:
    """Compare the nat tables, counters aside."""
    if seen.saved is None:
        return fails(f"the rules of {seen.who} were not saved before the flush")
    if seen.restored is None:
        return skips(f"the rules of {seen.who} are left flushed, as asked; merlab restore puts them back")
    before, after = seen.saved.specs("nat"), seen.restored.specs("nat")
    reading = Reading(seen.saved.source(seen.client), "rules", len(before), len(after))
    if before != after:
        differing = next(iter(set(before) ^ set(after)), "their order")
        return fails(f"the rules of {seen.who} differ from the saved ones after restoring: {differing}", reading)
    return holds(f"all {len(after)} nat rules of {seen.who} are back, in {place(seen.restored.backend)}", reading)
