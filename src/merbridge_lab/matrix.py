"""Measure six cells: with and without eBPF, with and without rules, on both sides.

The cells without eBPF are measured on a pair of control pods, so that the real pods never lose eBPF. The last cell is
the false positive of the walkthrough: a 200 without any sidecar in the path.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merbridge_lab.api import (
    APP_REPORTS_PEER,
    CONTROL_CLIENT,
    DATAPLANE,
    DIALS,
    INBOUND_WITHOUT_RULES,
    Finding,
    Unread,
    Verdict,
    assess,
    fails,
    holds,
    value_of,
)
from merbridge_lab.checks import bypass, dataplane, dials, mesh, rules
from merbridge_lab.observation import with_fresh_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from merbridge_lab.api import Lab, Observation, ServerGroup, Workload

#: The capabilities that a lab needs for the cells to be measured.
NEEDS = frozenset({DATAPLANE, CONTROL_CLIENT})
_MANY = 16


@dataclass(frozen=True)
class Cell:
    """One combination: whether eBPF serves both ends, and whether the client's and the servers' rules are present."""

    ebpf: bool
    client_rules: bool
    server_rules: bool

    @property
    def place(self) -> tuple[bool, bool, bool]:
        """Return its position in the table: sorted by eBPF first, then rules."""
        return not self.ebpf, not self.client_rules, not self.server_rules


@dataclass(frozen=True)
class CellOutcome:
    """The measurement of a cell on `client`; `finding` is whether the expected result was seen.

    `requests` were sent, and `answered` of them got a 200.

    A cell is skipped if the dataplane is known not to serve it: its result is reported, but proves nothing. `unasked`
    lists what else this machine could not measure in the cell, and why; each entry is a skip.
    """

    cell: Cell
    client: str
    finding: Finding
    served: bool
    both_sidecars: bool
    unasked: tuple[str, ...] = ()
    requests: int = 0
    answered: int = 0

    @property
    def skipped(self) -> int:
        """Return how much of it was skipped: all of it, or what could not be measured."""
        return 1 if self.finding.verdict is Verdict.SKIP else len(self.unasked)

    def to_json(self) -> dict[str, Any]:
        """Return it as scripts see it; `rules` are the client's, as in a walkthrough that flushes only sleep."""
        return {
            "ebpf": self.cell.ebpf,
            "rules": self.cell.client_rules,
            "server_rules": self.cell.server_rules,
            "client": self.client,
            "verdict": self.finding.verdict.value,
            "served": self.served,
            "both_sidecars": self.both_sidecars,
            "requests": self.requests,
            "answered": self.answered,
            "why": self.finding.why,
            "unasked": list(self.unasked),
            "evidence": [vars(reading) for reading in self.finding.evidence],
        }


def measure(lab: Lab) -> Iterator[CellOutcome]:
    """Measure the cells. Those without eBPF are the controls of the others.

    What sleep asks comes first, while the control pair starts; what needs new connections of sleep's sidecar comes
    last, as its kept ones run out by themselves meanwhile.

    If something of a cell could not be read, the cell does not hold and reports this. The other cells are still
    measured.
    """
    sleep = lab.workload("sleep")
    with contextlib.ExitStack() as stack:
        starting = stack.enter_context(lab.control_pair())
        present = lab.observe(sleep)
        dialled = lab.dial(sleep) if DIALS in lab.capabilities else ()
        with sleep.rules.flushed() as saved:
            flushed = lab.observe(sleep).with_rules(saved, None)
        pair = starting.ready()
        flushable = stack.enter_context(lab.flushable_servers())
        client, server, url = pair.client, pair.server, pair.url
        asked = list({each.name: each for each in (*lab.servers(), *flushable.servers)}.values())
        earlier = lab.observe(client, url=url, servers=[server], count=1)
        with client.rules.flushed():
            closed = lab.observe(client, url=url, servers=[server])
            with server.rules.flushed():
                # Do not wait for the logs here: no record is expected. Unexpected records are found below.
                bypassed = lab.observe(client, url=url, servers=[server], logged=False)
            # Ask the servers one by one: through the service, the server that accepts plain text might not be selected.
            refused = [lab.observe(client, url=each.url, servers=[each], count=1) for each in asked]
        by_rules = with_fresh_ports(lambda: lab.observe(client, url=url, servers=[server]), closed, bypassed)
        # By now both sidecars have written later records, so a record that is missing now was never written.
        strays = _strays(lab, bypassed, earlier)
        moved = assess(rules.assess_moved, by_rules)

        yield _outcome(Cell(ebpf=False, client_rules=True, server_rules=True), by_rules, lambda: moved)
        yield _outcome(
            Cell(ebpf=False, client_rules=False, server_rules=True),
            closed,
            lambda: _find_all_closed(asked, closed, *refused),
        )
        yield _outcome(
            Cell(ebpf=False, client_rules=False, server_rules=False),
            bypassed,
            lambda: bypass.assess_bypass(bypassed, value_of(strays), moved, told=APP_REPORTS_PEER in lab.capabilities),
        )

        present = present.with_control(by_rules)
        others = dials.assess_carried(sleep.name, dialled)
        yield _outcome(
            Cell(ebpf=True, client_rules=True, server_rules=True),
            present,
            lambda: _all(
                f"by eBPF: {{payload}}{f', {others.why}' if others.evidence else ''}; {{last}}",
                *_served_by_ebpf(present),
                _both_answer(lab, sleep, present),
                others,
                rules.assess_stood_still(present),
            ),
            unasked=dials.unasked(dialled),
        )

        flushed = flushed.with_control(closed)
        yield _outcome(
            Cell(ebpf=True, client_rules=False, server_rules=True),
            flushed,
            lambda: _all(
                "by eBPF alone: {payload}; no rule was left in sleep, and without eBPF that is line 5",
                *_served_by_ebpf(flushed),
                rules.assess_absent(flushed),
                dataplane.assess_took_over(flushed),
            ),
        )
        yield _all_flushed(lab, sleep, flushable, client, refused)


def _find_all_closed(servers: Sequence[Workload], *seen: Observation) -> Finding:
    findings = [mesh.assess_closed_as_plain_text(each) for each in seen]
    return _all(f"{findings[0].why}; so do the sidecars of {_names(servers)}", *findings)


def _strays(lab: Lab, bypassed: Observation, earlier: Observation) -> Sequence[str] | Unread:
    """Find records of requests that were sent past the sidecars; `earlier` shows that nobody cut the logs meanwhile."""
    (known,) = (exchange.nonce for exchange in earlier.exchanges)
    found = lab.logged([known, *(exchange.nonce for exchange in bypassed.exchanges)])
    if sum(known in line for line in found) < 2:  # noqa: PLR2004 - the client's sidecar and the server's
        return Unread("envoy:access", "a record that both sidecars had written is no longer in their logs")
    return [line for line in found if known not in line]


def _all_flushed(
    lab: Lab, sleep: Workload, flushable: ServerGroup, outside: Workload, refused: Sequence[Observation]
) -> CellOutcome:
    """Flush both sides: only eBPF can now bring a request to a server's sidecar."""
    fresh, servers = lab.drain_idle_connections(), flushable.servers

    def requests_of(client: Workload) -> Observation:
        return lab.observe(client, url=flushable.url, servers=servers)

    with lab.flushed([sleep, *servers]) as saved:
        before = {server.name: server.rules.snapshot() for server in servers}
        seen = requests_of(sleep).with_rules(saved[sleep.name], None)
        from_outside = (
            with_fresh_ports(lambda: requests_of(outside), *refused)
            if INBOUND_WITHOUT_RULES in lab.capabilities
            else None
        )
        after = {server.name: server.rules.snapshot() for server in servers}

    def look() -> Finding:
        gone = [rules.assess_absent(seen), *(rules.assess_gone(name, before[name], after[name]) for name in after)]
        if from_outside is None:
            return _find_limit(seen, gone, lab.why_missing(INBOUND_WITHOUT_RULES))
        findings = [*_served_by_ebpf(seen), *gone]
        if fresh:
            findings.append(dataplane.assess_dialled_sidecar(seen))
        if len(servers) > 1:
            findings.append(_both_answer(lab, outside, from_outside))
        findings.append(dataplane.assess_steered(from_outside))
        left = "any pod" if len(servers) > 1 else _names([sleep, *servers])
        return _all(f"by eBPF on both sides: {{payload}}; no rule was left in {left}; {{last}}", *findings)

    return _outcome(Cell(ebpf=True, client_rules=False, server_rules=False), seen, look)


def _find_limit(seen: Observation, gone: Sequence[Finding], limit: str) -> Finding:
    """Report what happens to requests if the dataplane is known to leave the servers' side to the rules.

    The rules must be gone, and the client's connections must be intercepted: these claims are no limitation. What then
    happens at the servers depends on upstream: it is reported, whatever it is.
    """
    must = [*gone, dataplane.assess_intercepted(seen)]
    evidence = tuple(reading for finding in must for reading in finding.evidence)
    for finding in must:
        if not finding.held:
            return fails(finding.why, *evidence)
    by_ebpf = _served_by_ebpf(seen)
    if all(finding.held for finding in by_ebpf):
        return _all("by eBPF on both sides, this time: {payload}; no rule was left in any pod", *by_ebpf, *gone)
    answered = sum(exchange.served for exchange in seen.exchanges)
    through = sum(line.inbound for _, line in value_of(seen.server_log).values())
    other = next((f" (one: {exchange})" for exchange in seen.exchanges if not exchange.served), "")
    total = len(seen.exchanges)
    return Finding(
        Verdict.SKIP,
        f"a known limit, not a broken lab: {limit}. Seen: {answered} of {total} answered{other}, {through} of {total}"
        " through a server's sidecar",
        (*evidence, *by_ebpf[0].evidence, *by_ebpf[1].evidence),
    )


def _served_by_ebpf(seen: Observation) -> tuple[Finding, ...]:
    return (
        mesh.assess_served(seen),
        mesh.assess_both_sidecars(seen),
        dataplane.assess_intercepted(seen),
        dataplane.assess_payload(seen),
    )


def _both_answer(lab: Lab, client: Workload, seen: Observation) -> Finding:
    """Check with the client's retries that no server is hidden behind the others.

    Sidecars select servers in turn, but other requests also advance the turn. Four equal answers may be chance; sixteen
    more are not.
    """
    finding = mesh.assess_both_versions(seen)
    return finding if finding.held else mesh.assess_both_versions(lab.observe(client, count=_MANY))


def _names(workloads: Sequence[Workload]) -> str:
    return " and ".join(each.name for each in workloads)


def _all(why: str, *findings: Finding) -> Finding:
    """Join findings: return the first that does not hold, or else a finding with `why`.

    In `why`, {payload} is the text of the finding about the payload (the fourth), and {last} that of the last one.
    """
    evidence = tuple(reading for finding in findings for reading in finding.evidence)
    control = next((finding.control for finding in findings if finding.control), None)
    for finding in findings:
        if not finding.held:
            return fails(finding.why, *evidence, control=control)
    return holds(
        why.replace("{payload}", findings[min(3, len(findings) - 1)].why).replace("{last}", findings[-1].why),
        *evidence,
        control=control,
    )


def _outcome(cell: Cell, seen: Observation, look: Callable[[], Finding], unasked: tuple[str, ...] = ()) -> CellOutcome:
    return CellOutcome(
        cell,
        seen.client,
        assess(look),
        served=all(exchange.served for exchange in seen.exchanges),
        both_sidecars=assess(mesh.assess_both_sidecars, seen).held,
        unasked=unasked,
        requests=len(seen.exchanges),
        answered=sum(exchange.served for exchange in seen.exchanges),
    )
