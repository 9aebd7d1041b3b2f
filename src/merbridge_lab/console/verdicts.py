"""The end of a run: the matrix, what was proved in words, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from merbridge_lab import hints, polling, request_path
from merbridge_lab.console import picture
from merbridge_lab.console.terminal import MARK, Terminal
from merbridge_lab.console.views import columns
from merbridge_lab.evidence import Verdict
from merbridge_lab.observation import Observation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.console.terms import Terms
    from merbridge_lab.matrix import Cell, CellOutcome
    from merbridge_lab.report import Report

#: What a cell that is as expected shows, by eBPF, client's rules, servers' rules.
_ROWS = {
    (True, True, True): "through both sidecars, by eBPF",
    (True, False, True): "through both sidecars, by eBPF alone",
    (True, False, False): "both sidecars, by eBPF on both sides",
    (False, True, True): "through both sidecars, by the rules",
    (False, False, True): "closed: sidecars refuse plain text",
    (False, False, False): "past the sidecars: it proves nothing",
}
#: The cell that is as expected and still a warning: plain traffic gets through.
_TRAP = (False, False, False)
#: The narrowest page on which a row and its words share a line.
_WIDE = 76
_NEXT = {
    "up": ("merlab step 9 --keep", "merlab trace", "merlab verify", "merlab down"),
    "step": ("merlab step 9 --keep", "merlab verify", "merlab down"),
    "kept": (
        "merlab exec sleep -- curl -s helloworld:5000/hello",
        "merlab exec --without-ebpf sleep -- curl -sS helloworld:5000/hello",
        "merlab restore",
    ),
    "verify": ("merlab step 9 --keep", "merlab trace", "merlab down"),
}


def _key(cell: Cell) -> tuple[bool, bool, bool]:
    return cell.ebpf, cell.client_rules, cell.server_rules


def matrix(terminal: Terminal, outcomes: Sequence[CellOutcome]) -> None:
    """Print what happens with and without eBPF and rules, a row each; with -v what was found, with -vv the evidence."""
    terminal.line("")
    words = terminal.out.width >= _WIDE
    cells = columns("", "eBPF", "rules: client", "servers", "answered", *(["what happened"] if words else []))
    for outcome in outcomes:
        mark = _mark(outcome)
        row = [
            mark,
            "on" if outcome.cell.ebpf else "off",
            "present" if outcome.cell.client_rules else "flushed",
            "present" if outcome.cell.server_rules else "flushed",
            f"{outcome.answered} of {outcome.requests}",
        ]
        cells.add_row(*row, *([escape(_row(outcome))] if words else []))
    terminal.out.print(cells)
    for number, outcome in enumerate(outcomes, 1):
        details = terminal.verbosity > 0 or outcome.finding.verdict is Verdict.FAIL
        if details or not words:
            terminal.prose(outcome.finding.why if details else _row(outcome), 3, mark=f"{number}  ")
        if terminal.verbosity > 1 or outcome.finding.verdict is Verdict.FAIL:
            terminal.evidence(outcome.finding.evidence)


def _mark(outcome: CellOutcome) -> str:
    style = outcome.finding.verdict.value
    if style == "pass" and _key(outcome.cell) == _TRAP:
        style = "warn"
    return f"[{style}]{MARK[style]}[/]"


def _row(outcome: CellOutcome) -> str:
    if outcome.finding.verdict is Verdict.PASS:
        return _ROWS[_key(outcome.cell)]
    return "not as expected, see below" if outcome.finding.verdict is Verdict.FAIL else "a known limit, with -v"


def of_run(terminal: Terminal, report: Report, terms: Terms) -> None:
    """Print what a run without an error came to; explain those of `terms` that are new."""
    if report.verdict is not Verdict.PASS:
        cause = f"{report.command}: {report.cause or 'nothing was seen to hold'}"
        terminal.prose(cause, 2, mark="[fail]✘[/] ", style="fail")
        if hint := hints.rendered(report.hint):
            terminal.line(f"  → {escape(hint)}")
        if report.see:
            terminal.line(f"  [faint]see {escape(report.see)}[/]")
        return
    quiet = terminal.verbosity < 0
    if (report.matrix or report.steps[1:]) and not quiet:
        terminal.line("")
    if not quiet and (proved := _proved(report)):
        for seen in [step.seen for step in report.steps if isinstance(step.seen, Observation) and step.seen.saved][-1:]:
            terminal.drawing(picture.lines(request_path.observed(seen), terminal.out.width, unicode=terminal.unicode))
        terminal.prose(proved, 8, mark="[title]Proved:[/] ", style="title")
    passed = sum(step.verdict is Verdict.PASS for step in report.steps)
    cells = sum(cell.finding.held for cell in report.matrix)
    measured = f", {cells} of {len(report.matrix)} cells as expected" if report.matrix else ""
    skipped = f", {report.skipped} skipped" if report.skipped else ""
    held = f"{report.command}: {passed} of {len(report.steps)} steps held{measured}{skipped}"
    took = "" if polling.is_slowed() else f" [faint]in {report.seconds:.1f} s[/]"
    terminal.line(f"[pass]✔ {held}[/]{took}")
    if not quiet:
        terminal.explain(terms.new_in(measured), 2)
        _next(terminal, _NEXT["kept" if report.kept else report.command])


def _next(terminal: Terminal, commands: Sequence[str]) -> None:
    """Print what may be typed next, as many commands a line as fit; a line ends only between two commands."""
    head, between = "Next: ", " · "
    lines: list[str] = []
    for each in commands:
        typed = str(hints.rendered(each))
        if lines and len(head + lines[-1] + between + typed) <= terminal.out.width:
            lines[-1] += between + typed
        else:
            lines.append(typed)
    for number, line in enumerate(lines):
        terminal.line(f"[faint]{head}[/]{escape(line)}" if not number else " " * len(head) + escape(line))


def _proved(report: Report) -> str:
    """Return two sentences about what the flush showed; "" if the run has not shown it."""
    cells = {_key(outcome.cell): outcome for outcome in report.matrix}
    by_ebpf, without = cells.get((True, False, True)), cells.get((False, False, True))
    if by_ebpf and without and by_ebpf.finding.held and without.finding.held:
        return _words(by_ebpf.answered, by_ebpf.requests, without.requests - without.answered, without.requests)
    for step in report.steps:
        held = any(each.check.name == "redirect.ebpf_took_over" and each.finding.held for each in step.checks)
        if held and isinstance(step.seen, Observation) and step.seen.control is not None:
            sent, control = step.seen.exchanges, step.seen.control.exchanges
            broken = sum(not each.served for each in control)
            return _words(sum(each.served for each in sent), len(sent), broken, len(control))
    return ""


def _words(answered: int, sent: int, broken: int, without: int) -> str:
    return (
        f"with 0 NAT rules in sleep, {answered} of {sent} requests passed both sidecars, by eBPF."
        f" Without eBPF the same flush broke {broken} of {without}."
    )
