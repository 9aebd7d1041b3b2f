"""A run as it goes: each step as a block, brief or with its commands, their output and the evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from merbridge_lab import events, hints, polling
from merbridge_lab.command_events import CommandBegins, CommandOutput, Notice, ProofNeeds
from merbridge_lab.console.terminal import MARK
from merbridge_lab.evidence import Verdict
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.console.progress import Waiting
    from merbridge_lab.console.terminal import Terminal
    from merbridge_lab.console.terms import Terms
    from merbridge_lab.model import Step
    from merbridge_lab.report import CheckOutcome, StepOutcome

#: Lines of output below one command, and commands of one block, without -v.
_MOST_OUTPUT = 6
_MOST_COMMANDS = 4
_GUTTER = "     │ "


class RunView:
    """Prints events of a run while they happen.

    With `brief`, a step that held is its title and the sentence of one check; with `terse`, its title only.
    """

    def __init__(
        self, terminal: Terminal, waiting: Waiting, terms: Terms, *, brief: bool = False, terse: bool = False
    ) -> None:
        self._terminal, self._waiting, self._terms = terminal, waiting, terms
        #: The sentences of the step that were printed.
        self._said: list[str] = []
        self._brief = (brief or terse) and terminal.verbosity == 0
        self._terse = terse
        self._standing: list[str] = []

    def hear(self, event: events.Event) -> None:
        """Print an event."""
        if isinstance(event, events.StepBegins):
            self._begin(event.step)
        elif isinstance(event, events.StepEnds):
            self._end(event.outcome)
        elif isinstance(event, events.Standing):
            self._stands(event)
        elif isinstance(event, events.MatrixBegins):
            self._waiting.start("measuring with and without eBPF, with and without rules")
        elif not self._brief and self._terminal.verbosity >= 0:
            self._detail(event)

    def _begin(self, step: Step) -> None:
        if not self._brief and self._terminal.verbosity >= 0:
            self._terminal.line(f"[title]{step.number}  {escape(step.title)}[/]")
            if self._terminal.verbosity > 0:
                self._terminal.prose(step.narration, 3, style="faint")
                self._said.append(step.narration)
        self._waiting.start(f"step {step.number}: {step.title}")

    def _stands(self, event: events.Standing) -> None:
        """Print the preconditions of a proof in one line, a word each."""
        name, finding = event.outcome.check.name.partition(".")[0], event.outcome.finding
        if finding.held:
            self._standing.append(name)
        if self._terminal.verbosity < 0 or not (event.last or not finding.held):
            return
        held = "  ".join(f"{each} [pass]{MARK['pass']}[/]" for each in self._standing)
        self._terminal.line(held if finding.held else f"{held}  {name} [fail]{MARK['fail']}[/]".lstrip())

    # -- with commands ----------------------------------------------------------------------------------------------

    def _detail(self, event: events.Event) -> None:
        with self._waiting.aside():
            if isinstance(event, CommandBegins):
                self._commands(event)
            elif isinstance(event, CommandOutput):
                self._output(event)
            elif isinstance(event, Notice):
                self._terminal.line(f"{_GUTTER}{escape(event.text)}")
                self._said.append(event.text)
            elif isinstance(event, ProofNeeds):
                self._said.append(event.what)
                self._terminal.line(f"   [faint]for the proof: {escape(event.what)}[/]")

    def _commands(self, event: CommandBegins) -> None:
        most = len(event.commands) if self._terminal.verbosity > 0 else _MOST_COMMANDS
        for command in event.commands[:most]:
            self._terminal.line(f"   [cmd]$ {escape(hints.command(command))}[/]")
        if len(event.commands) > most:
            self._terminal.line(f"   [faint]… {len(event.commands) - most} more commands (-v shows them)[/]")

    def _output(self, event: CommandOutput) -> None:
        printed = lines_of(event.text.rstrip("\n"))
        most = len(printed) if self._terminal.verbosity > 0 else _MOST_OUTPUT
        more = len(printed) - most
        if more > 0 and event.excerpts:
            more = len(printed) - sum(each.covers for each in event.excerpts)
            for each in event.excerpts:
                self._terminal.line(f"     {escape(each.line)}")
                self._terminal.prose(each.meaning, len(_GUTTER), mark=_GUTTER, hanging=_GUTTER)
        else:
            for line in printed[:most]:
                self._terminal.line(f"     {escape(line)}")
        if more > 0:
            self._terminal.line(f"     [faint]… {more} more lines (-v shows them)[/]")

    # -- the end of a step ------------------------------------------------------------------------------------------

    def _end(self, outcome: StepOutcome) -> None:
        self._waiting.stop()
        terminal = self._terminal
        if terminal.verbosity < 0:
            if outcome.verdict is not Verdict.PASS:
                terminal.line(f"{outcome.step.number}  {escape(outcome.step.title)}: {outcome.verdict.value}")
            return
        if self._brief:
            self._headline(outcome)
        elif not outcome.acted and outcome.verdict is Verdict.PASS:
            terminal.line("   [faint]already done[/]")
        self._checks(outcome.step, outcome.checks)
        if outcome.reason:
            style = outcome.verdict.value
            terminal.prose(outcome.reason, 5, mark=f"   [{style}]{MARK[style]}[/] ")
        terminal.explain(self._terms.new_in(*self._said), 5)
        self._said.clear()
        if not self._brief:
            terminal.line("")

    def _headline(self, outcome: StepOutcome) -> None:
        style, step = outcome.verdict.value, outcome.step
        so = "already done, " if not outcome.acted and outcome.verdict is Verdict.PASS else ""
        so = f"{so}{len(outcome.checks)} checks, " if self._terse else so
        so = so.removesuffix(", ") if polling.is_slowed() else f"{so}{outcome.seconds:.1f} s"
        self._terminal.line(f"[{style}]{MARK[style]}[/] [title]{step.number}  {escape(step.title)}[/]  [faint]{so}[/]")

    def _checks(self, step: Step, outcomes: Sequence[CheckOutcome]) -> None:
        if self._brief and all(each.finding.verdict is Verdict.PASS for each in outcomes):
            if self._terse:
                return
            told = [each.finding.why for each in outcomes if each.check.name == step.headline] or [
                each.finding.why for each in outcomes[-1:]
            ]
            more = f" ({len(outcomes)} checks)" if len(outcomes) > 1 else ""
            self._terminal.prose("".join(told) + more, 5, mark="     ")
            self._said += told
            return
        for outcome in outcomes:
            finding = outcome.finding
            style = finding.verdict.value
            named = f" ({outcome.check.name})" if self._terminal.verbosity > 0 or not finding.held else ""
            self._terminal.prose(f"{finding.why}{named}", 5, mark=f"   [{style}]{MARK[style]}[/] ")
            self._said.append(finding.why)
            if self._terminal.verbosity > 1 or finding.verdict is Verdict.FAIL:
                self._terminal.evidence(finding.evidence)
                if finding.control is not None:
                    self._terminal.line(f"       control {finding.control.name}: {finding.control.verdict.value}")
                    self._terminal.evidence(finding.control.evidence)
