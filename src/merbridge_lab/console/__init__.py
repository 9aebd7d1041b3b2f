"""What a person sees: results on stdout, progress and errors on stderr. Only this package imports rich."""

from __future__ import annotations

import select
import sys
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from merbridge_lab import hints, polling, signals
from merbridge_lab.console import views
from merbridge_lab.console.progress import Waiting
from merbridge_lab.console.terminal import MARK, Terminal
from merbridge_lab.evidence import Verdict
from merbridge_lab.text import as_json, lines_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from merbridge_lab.errors import LabError
    from merbridge_lab.matrix import CellOutcome
    from merbridge_lab.model import Step
    from merbridge_lab.original_commands import Original
    from merbridge_lab.report import CheckOutcome, Report, StepOutcome
    from merbridge_lab.requirements import Requirement
    from merbridge_lab.trace_event import TraceEvent

_MOST_STDERR = 12
_A_DAY = 86400.0


class Console:
    """Prints a run as it goes; also the Observer of the runner."""

    def __init__(self, *, as_json: bool = False, verbosity: int = 0, color: bool = True) -> None:
        self.as_json = as_json
        self.verbosity = verbosity
        self._terminal = Terminal(verbosity=verbosity, color=color)
        self._waiting = Waiting(self._terminal)

    # -- results ------------------------------------------------------------------------------------------------

    def json(self, value: Mapping[str, Any]) -> None:
        """Print the one JSON object of a run."""
        self._waiting.stop()
        self._terminal.raw(as_json(value, indent=2) + "\n")

    def say(self, text: str) -> None:
        """Print a plain line of the result."""
        self._waiting.stop()
        self._terminal.line(escape(text))

    def text(self, text: str) -> None:
        """Print a text unchanged, for another program to read."""
        self._waiting.stop()
        self._terminal.raw(text)

    def error(self, error: LabError) -> None:
        """Print what is wrong and what to type next."""
        self._waiting.stop()
        err = self._terminal.err
        err.print(f"[error]merlab: {escape(error.what)}[/]", soft_wrap=True)
        for line in lines_of((error.stderr or "").strip())[-_MOST_STDERR:]:
            err.print(f"  [faint]│ {escape(line)}[/]", soft_wrap=True)
        if error.command and (self.verbosity > 0 or error.stderr):
            err.print(f"  [faint]command:[/] {escape(error.command)}", soft_wrap=True)
        if hint := hints.rendered(error.hint):
            err.print(f"  → {escape(hint)}", soft_wrap=True)
        err.print(f"  [faint]see {escape(error.see)}[/]", soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line of progress."""
        if self.verbosity >= 0:
            self._waiting.stop()
            self._terminal.err.print(f"[faint]{escape(text)}[/]", soft_wrap=True)

    def remark(self, text: str, hint: str) -> None:
        """Print a line that is also needed with -q, with what to type."""
        self._waiting.stop()
        self._terminal.err.print(f"[warn]![/] {escape(f'{text} {hints.rendered(hint)}')}", soft_wrap=True)

    # -- the runner's observer ------------------------------------------------------------------------------------

    def step_begins(self, step: Step) -> None:
        """Print the step's title and start to show what is awaited."""
        self._waiting.stop()
        if not self.as_json and self.verbosity >= 0:
            self._terminal.line(f"[title]{step.number}  {escape(step.title)}[/]")
            self._terminal.prose(step.narration, 3, style="faint")
        self._waiting.start(f"step {step.number}: {step.title}")

    def check_ends(self, step: Step, outcome: CheckOutcome) -> None:
        """Do nothing yet: checks are printed with the step, below its commands."""

    def step_ends(self, outcome: StepOutcome) -> None:
        """Print the commands with their output, the checks, and the outcome of the step."""
        self._waiting.stop()
        terminal = self._terminal
        if self.as_json:
            if self.verbosity >= 0:
                terminal.err.print(f"step {outcome.step.number}: {outcome.verdict.value} ({outcome.seconds:.1f} s)")
            return
        if self.verbosity < 0:
            if outcome.verdict is not Verdict.PASS:
                terminal.line(f"{outcome.step.number}  {escape(outcome.step.title)}: {outcome.verdict.value}")
            return
        if not outcome.acted and outcome.verdict is Verdict.PASS:
            terminal.line("   [faint]already done[/]")
        terminal.commands(outcome.shown, f"all: {hints.rendered(f'merlab steps {outcome.step.number}')}")
        self._checks(outcome.checks)
        if outcome.reason:
            style = outcome.verdict.value
            terminal.prose(outcome.reason, 5, mark=f"   [{style}]{MARK[style]}[/] ")
        terminal.line("")

    def _checks(self, outcomes: Iterable[CheckOutcome]) -> None:
        for outcome in outcomes:
            finding = outcome.finding
            style = finding.verdict.value
            self._terminal.prose(f"{finding.why} ({outcome.check.name})", 5, mark=f"   [{style}]{MARK[style]}[/] ")
            if self.verbosity > 0 or finding.verdict is Verdict.FAIL:
                self._terminal.evidence(finding.evidence)
                if finding.control is not None:
                    self._terminal.line(f"       control {finding.control.name}: {finding.control.verdict.value}")
                    self._terminal.evidence(finding.control.evidence)

    def awaits(self, what: str) -> None:
        """Start to show that `what` is awaited, until `close`."""
        self._waiting.start(f"waiting: {what}")

    def matrix_begins(self) -> None:
        """Start to show that the matrix is being measured."""
        self._waiting.start("measuring with and without eBPF, with and without rules")

    def cell_ends(self, outcome: CellOutcome) -> None:
        """Do nothing yet: the matrix is printed as a whole."""

    def pause(self, step: Step) -> None:
        """Wait for Enter before `step`."""
        self._waiting.stop()
        self._terminal.err.print(
            f"[faint]Enter for step {step.number}: {escape(step.title)} (Ctrl-C stops here)[/]", end=" "
        )
        ready = polling.poll_until(
            lambda: bool(select.select([sys.stdin], [], [], 0)[0]), timeout=_A_DAY, awaiting="Enter"
        )
        if ready:
            self._read_line()

    @staticmethod
    def _read_line() -> None:
        try:
            sys.stdin.readline()
        except OSError:  # the terminal is gone: nobody will press Enter any more
            signals.hang_up()
            signals.checkpoint()

    def verdict(self, report: Report) -> None:
        """Print the verdict of a run: what held, or the cause and what to type next."""
        self._waiting.stop()
        terminal = self._terminal
        if report.matrix and self.verbosity >= 0:
            views.matrix(terminal, report.matrix)
        if report.error is not None:
            self.error(report.error)
            return
        if report.verdict is Verdict.PASS:
            passed = sum(step.verdict is Verdict.PASS for step in report.steps)
            cells = sum(cell.finding.held for cell in report.matrix)
            measured = f", {cells} of {len(report.matrix)} cells as expected" if report.matrix else ""
            skipped = f", {report.skipped} skipped" if report.skipped else ""
            held = f"{report.command}: {passed} of {len(report.steps)} steps held{measured}{skipped}"
            terminal.line(f"[pass]✔ {held}[/] [faint]in {report.seconds:.1f} s[/]")
            return
        cause = f"{report.command}: {report.cause or 'nothing was seen to hold'}"
        terminal.prose(cause, 2, mark="[fail]✘[/] ", style="fail")
        if hint := hints.rendered(report.hint):
            terminal.line(f"  → {escape(hint)}")
        if report.see:
            terminal.line(f"  [faint]see {escape(report.see)}[/]")

    # -- pictures -------------------------------------------------------------------------------------------------

    def requirements(self, found: Sequence[Requirement]) -> None:
        """Print what the machine offers and lacks."""
        views.requirements(self._terminal, found)

    def steps(self, rows: Sequence[tuple[Step, str]]) -> None:
        """Print the steps with their state."""
        views.steps(self._terminal, rows)

    def narrate(self, step: Step, commands: Sequence[str], original: Sequence[Original] = (), note: str = "") -> None:
        """Print everything about one step; `original` was typed for it in 2022, `note` is about the commands."""
        views.narrate(self._terminal, step, commands, original, note)

    def status(self, described: Mapping[str, Any]) -> None:
        """Print a picture of the lab."""
        views.status(self._terminal, described)

    def trace_event(self, event: TraceEvent, *, raw: bool, as_json: bool) -> None:
        """Print one event of the trace."""
        views.trace_event(self._terminal, event, raw=raw, as_json=as_json)

    def close(self) -> None:
        """Stop everything that still moves on the terminal."""
        self._waiting.stop()

    @property
    def lost(self) -> OSError | None:
        """Describe why not everything could be written, unless the reader closed the stream."""
        return self._terminal.lost
