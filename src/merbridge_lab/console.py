"""What a person sees: results on stdout, progress and errors on stderr. The only importer of rich."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.theme import Theme

from merbridge_lab import waiting
from merbridge_lab.evidence import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from merbridge_lab.errors import LabError
    from merbridge_lab.evidence import Reading
    from merbridge_lab.lab import Shown
    from merbridge_lab.matrix import CellOutcome
    from merbridge_lab.model import Step
    from merbridge_lab.report import CheckOutcome, Report, StepOutcome
    from merbridge_lab.requirements import Requirement

_THEME = Theme(
    {
        "pass": "green",
        "fail": "bold red",
        "error": "bold red",
        "skip": "yellow",
        "warn": "yellow",
        "cmd": "cyan",
        "faint": "dim",
        "title": "bold",
    }
)
_MARK = {"pass": "✔", "fail": "✘", "error": "✘", "skip": "-", "warn": "!"}
_PLAIN_WIDTH = 100
_MOST_OUTPUT = 20
_MOST_COMMANDS = 7
#: A wait shorter than this many seconds is not worth a line in a pipe.
_WORTH_A_LINE = 1.0
_BETWEEN_LINES = 5.0


class _Unbroken:
    """A stream that goes quiet when its reader goes away, so that `merlab up | head -1` still finishes its work."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._open = True

    def write(self, text: str) -> int:
        if self._open:
            try:
                return self._stream.write(text)
            except (BrokenPipeError, ValueError):
                self._open = False
            except UnicodeEncodeError:
                return self._stream.write(text.encode("ascii", "replace").decode("ascii"))
        return len(text)

    def flush(self) -> None:
        if self._open:
            try:
                self._stream.flush()
            except (BrokenPipeError, ValueError):
                self._open = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _rich(stream: IO[str], *, color: bool) -> RichConsole:
    on_terminal = stream.isatty()
    return RichConsole(
        file=_Unbroken(stream),  # type: ignore[arg-type]  # as much of a text stream as rich uses
        theme=_THEME,
        highlight=False,
        emoji=False,
        no_color=not color or None,
        width=None if on_terminal or os.environ.get("COLUMNS") else _PLAIN_WIDTH,
    )


class Console:
    """Prints a run as it goes; also the Observer of the runner."""

    def __init__(self, *, as_json: bool = False, verbosity: int = 0, color: bool = True) -> None:
        self.as_json = as_json
        self.verbosity = verbosity
        self.out = _rich(sys.stdout, color=color)
        self.err = _rich(sys.stderr, color=color)
        self._progress: Progress | None = None
        self._awaited = ("", 0.0)
        self._due = 0.0

    # -- results ------------------------------------------------------------------------------------------------

    def json(self, value: Mapping[str, Any]) -> None:
        """Print the one JSON object of a run."""
        self._stop()
        self.out.file.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")
        self.out.file.flush()

    def say(self, text: str) -> None:
        """Print a plain line of the result."""
        self._stop()
        self.out.print(escape(text), soft_wrap=True)

    def error(self, error: LabError) -> None:
        """Print what is in the way and what to type next."""
        self._stop()
        self.err.print(f"[error]merlab: {escape(error.what)}[/]", soft_wrap=True)
        if error.stderr:
            for line in error.stderr.strip().splitlines()[-_MOST_OUTPUT:]:
                self.err.print(f"  [faint]│ {escape(line)}[/]", soft_wrap=True)
        if error.command and (self.verbosity > 0 or error.stderr):
            self.err.print(f"  [faint]it was:[/] {escape(error.command)}", soft_wrap=True)
        if error.hint:
            self.err.print(f"  → {escape(error.hint)}", soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line of progress."""
        if self.verbosity >= 0:
            self._stop()
            self.err.print(f"[faint]{escape(text)}[/]", soft_wrap=True)

    # -- the runner's observer -----------------------------------------------------------------------------------

    def step_begins(self, step: Step) -> None:
        """Print the step's title and start showing what is awaited."""
        self._stop()
        if not self.as_json and self.verbosity >= 0:
            self.out.print(f"[title]{step.number}  {escape(step.title)}[/]")
            if step.narration:
                self._indented(step.narration, 3, style="faint")
        self._start(f"step {step.number}: {step.title}")

    def check_ends(self, step: Step, outcome: CheckOutcome) -> None:
        """Nothing yet: checks are printed with the step, below its commands."""

    def step_ends(self, outcome: StepOutcome) -> None:
        """Print the commands with their output, the checks, and how the step came out."""
        self._stop()
        if self.as_json:
            if self.verbosity >= 0:
                self.err.print(f"step {outcome.step.number}: {outcome.verdict.value} ({outcome.seconds:.1f} s)")
            return
        if self.verbosity < 0:
            if outcome.verdict is not Verdict.PASS:
                self.out.print(f"{outcome.step.number}  {escape(outcome.step.title)}: {outcome.verdict.value}")
            return
        if not outcome.acted and outcome.verdict is Verdict.PASS:
            self.out.print("   [faint]already so[/]")
        self.shown(outcome.shown, f"merlab steps {outcome.step.number} lists them")
        self.checks(outcome.checks)
        if outcome.reason:
            style = outcome.verdict.value
            self.out.print(f"   [{style}]{_MARK[style]}[/] {escape(outcome.reason)}")
        self.out.print()

    def shown(self, commands: Sequence[Shown], where_else: str) -> None:
        """Print commands as a person would type them, whole on their lines, with what they printed.

        Without -v the first ones only; `where_else` says where the rest is to be had.
        """
        most_commands = len(commands) if self.verbosity > 0 else _MOST_COMMANDS
        for shown in commands[:most_commands]:
            self.out.print(f"   [cmd]$ {escape(shown.command)}[/]", soft_wrap=True)
            lines = shown.output.rstrip("\n").splitlines() if shown.output else []
            most = len(lines) if self.verbosity > 0 else _MOST_OUTPUT
            for line in lines[:most]:
                self.out.print(f"     [faint]{escape(line)}[/]", soft_wrap=True)
            if len(lines) > most:
                self.out.print(f"     [faint]… {len(lines) - most} more lines (-v shows them)[/]")
        if len(commands) > most_commands:
            self.out.print(f"   [faint]… {len(commands) - most_commands} more commands ({where_else})[/]")

    def checks(self, outcomes: Iterable[CheckOutcome]) -> None:
        """Print each check with what it found; with -v its evidence."""
        for outcome in outcomes:
            finding = outcome.finding
            style = finding.verdict.value
            self._indented(f"{finding.why} ({outcome.check.name})", 5, mark=f"   [{style}]{_MARK[style]}[/] ")
            if self.verbosity > 0 or finding.verdict is Verdict.FAIL:
                self._evidence(finding.evidence)
                if finding.control is not None:
                    self.out.print(f"       control {finding.control.name}: {finding.control.verdict.value}")
                    self._evidence(finding.control.evidence)

    def _indented(self, text: str, by: int, *, mark: str = "", style: str = "default") -> None:
        """Print prose, folded to the width and indented; `mark` stands before its first line."""
        for number, line in enumerate(textwrap.wrap(" ".join(text.split()), max(self.out.width - by, 20))):
            before = mark if mark and not number else " " * by
            self.out.print(f"{before}[{style}]{escape(line)}[/]", soft_wrap=True)

    def _evidence(self, readings: Sequence[Reading]) -> None:
        for reading in readings:
            before = "" if reading.before is None else f"{reading.before} → "
            self.out.print(
                f"       [faint]{escape(reading.source)}: {escape(str(before))}{escape(str(reading.after))}"
                f" {escape(reading.unit)}[/]",
                soft_wrap=True,
            )

    def cell_ends(self, outcome: CellOutcome) -> None:
        """Nothing yet: the matrix is printed whole."""

    def matrix(self, outcomes: Sequence[CellOutcome]) -> None:
        """Print what happens with and without eBPF and rules, and below it why each line is believed."""
        if not outcomes or self.verbosity < 0:
            return
        self.out.print("[title]With and without eBPF, with and without rules[/]")
        table = Table(box=None, pad_edge=False)
        for column in ("", "eBPF", "client's rules", "servers' rules", "client", "answered", "both sidecars"):
            table.add_column(column)
        for number, outcome in enumerate(outcomes, 1):
            cell, style = outcome.cell, outcome.finding.verdict.value
            table.add_row(
                f"[{style}]{_MARK[style]}[/] {number}",
                "on" if cell.ebpf else "off",
                "present" if cell.client_rules else "flushed",
                "present" if cell.server_rules else "flushed",
                outcome.client,
                "yes" if outcome.served else "no",
                "yes" if outcome.both_sidecars else "no",
            )
        self.out.print(table)
        self.out.print()
        for number, outcome in enumerate(outcomes, 1):
            self._indented(outcome.finding.why, 3, mark=f"{number}  ")
            if self.verbosity > 0 or outcome.finding.verdict is Verdict.FAIL:
                self._evidence(outcome.finding.evidence)
        self.out.print()

    def verdict(self, report: Report) -> None:
        """Print the verdict of a run: what held, or the cause and what to type next."""
        self._stop()
        self.matrix(report.matrix)
        cells = sum(cell.finding.held for cell in report.matrix)
        passed = sum(step.verdict is Verdict.PASS for step in report.steps)
        measured = f", {cells} of {len(report.matrix)} cells as expected" if report.matrix else ""
        skipped = f", {report.skipped} skipped" if report.skipped else ""
        if report.verdict is Verdict.PASS:
            self.out.print(
                f"[pass]✔ {report.command}: {passed} of {len(report.steps)} steps held{measured}{skipped}[/]"
                f" [faint]in {report.seconds:.1f} s[/]"
            )
            return
        if report.error is not None:
            self.error(report.error)
            return
        cause = f"{report.command}: {report.cause or 'nothing was seen to hold'}"
        self._indented(cause, 2, mark="[fail]✘[/] ", style="fail")
        hint = next((check.check.hint for check in report.failed() if check.check.hint), "")
        if hint:
            self.out.print(f"  → {escape(hint)}")

    def requirements(self, requirements: Sequence[Requirement]) -> None:
        """Print a line for each thing that the machine offers or lacks, with the command that mends it."""
        for requirement in requirements:
            style = requirement.verdict
            needed = f"  [faint](needed: {escape(requirement.needed)})[/]" if style != "pass" else ""
            self.out.print(
                f"[{style}]{_MARK.get(style, '?')}[/] {requirement.name:<22} {escape(requirement.found)}{needed}",
                soft_wrap=True,
            )
            if requirement.hint and style != "pass":
                self.out.print(f"    → {escape(requirement.hint)}", soft_wrap=True)

    def steps(self, rows: Sequence[tuple[Step, str]]) -> None:
        """Print number, state and title of each step."""
        for step, state in rows:
            self.out.print(f"{step.number}  {escape(state):<14} {escape(step.title)}")

    def narrate(self, step: Step, commands: Sequence[str]) -> None:
        """Print a step's narration and the commands a person would type for it."""
        self.out.print(f"[title]{step.number}  {escape(step.title)}[/]\n")
        self._indented(step.narration, 3)
        self.out.print()
        for command in commands:
            self.out.print(f"   [cmd]$ {escape(command)}[/]", soft_wrap=True)
        for check in step.verify + step.witness:
            self.out.print(f"   [faint]verified: {escape(check.description)} ({check.name})[/]")

    def status(self, described: Mapping[str, Any]) -> None:
        """Print which lab is up, its pods, and which path a request takes now."""
        if not described["up"]:
            self.out.print("no lab is up  → merlab up")
            return
        self.out.print(f"[title]{described['lab']}[/] lab is up")
        table = Table(box=None, pad_edge=False)
        for column in ("pod", "address", "pid", "sidecar", "rules"):
            table.add_column(column)
        for pod in described["workloads"]:
            rules = pod["rules"]
            count = f"{rules['istio_rules']} ISTIO rules in {rules['backend']}" if rules["istio_rules"] else "none"
            table.add_row(
                pod["name"],
                pod["ip"],
                str(pod["pid"] or "none"),
                "[pass]ready[/]" if pod["sidecar"] else "[fail]not ready[/]",
                count,
            )
        self.out.print(table)
        dataplane = described["dataplane"]
        if dataplane["attached"]:
            self.out.print(f"eBPF: {dataplane['kind']}, {dataplane['programs']} programs attached")
        else:
            self.out.print("eBPF: not attached")
        for name in described["flushed"]:
            self.out.print(f"[warn]![/] the nat rules of {name} are flushed  → merlab restore")
        for problem in described.get("problems", ()):
            self.out.print(f"[warn]![/] {escape(problem)}")

    # -- progress -------------------------------------------------------------------------------------------------

    def _start(self, what: str) -> None:
        waiting.listen(self._awaiting)
        if self.verbosity < 0 or not self.err.is_terminal:
            self._awaited = ("", time.monotonic())
            return
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=self.err, transient=True
        )
        self._progress.add_task(escape(what))
        self._progress.start()

    def _awaiting(self, what: str) -> None:
        if self._progress is not None:
            for task in self._progress.task_ids:
                self._progress.update(task, description=f"waiting: {escape(what)}")
            return
        now = time.monotonic()
        if what != self._awaited[0]:
            self._awaited = (what, now)
            self._due = now + _WORTH_A_LINE
        elif self.verbosity >= 0 and now >= self._due:
            self.err.print(f"still waiting: {escape(what)} ({now - self._awaited[1]:.0f} s)", soft_wrap=True)
            self._due = now + _BETWEEN_LINES

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def close(self) -> None:
        """End whatever still moves on the terminal."""
        self._stop()
        waiting.listen(None)
