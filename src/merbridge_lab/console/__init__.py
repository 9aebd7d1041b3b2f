"""What a person sees: results on stdout, progress and errors on stderr. Only this package imports rich."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from merbridge_lab import events, hints, polling
from merbridge_lab.console import bench_view, verdicts, views
from merbridge_lab.console.conversation import Conversation
from merbridge_lab.console.presenter import Presenter
from merbridge_lab.console.progress import Waiting
from merbridge_lab.console.recording import Recording
from merbridge_lab.console.run_view import RunView
from merbridge_lab.console.terminal import Terminal
from merbridge_lab.console.terms import Terms
from merbridge_lab.text import as_json, lines_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from merbridge_lab.bench.statistics import BenchSummary
    from merbridge_lab.console.keys import Keys
    from merbridge_lab.errors import LabError
    from merbridge_lab.events import Event
    from merbridge_lab.model import Step
    from merbridge_lab.original_commands import Original
    from merbridge_lab.report import Report
    from merbridge_lab.request_path import RequestPath
    from merbridge_lab.requirements import Requirement
    from merbridge_lab.trace_event import TraceContext, TraceEvent

_MOST_STDERR = 12


class Console:
    """Prints a run as it goes, and all other results; with `as_events`, --json prints an object a line."""

    def __init__(
        self,
        *,
        as_json: bool = False,
        as_events: bool = False,
        verbosity: int = 0,
        color: bool = True,
        brief: bool = False,
        terse: bool = False,
    ) -> None:
        self.as_json, self.as_events = as_json, as_events
        self.verbosity = verbosity
        self._recording: Recording | None = None
        self._terminal = Terminal(verbosity=verbosity, color=color)
        self._waiting = Waiting(self._terminal)
        self._terms = Terms()
        self._run = RunView(self._terminal, self._waiting, self._terms, brief=brief, terse=terse)

    # -- results ------------------------------------------------------------------------------------------------

    def json(self, value: Mapping[str, Any]) -> None:
        """Print the one JSON object of a run."""
        self._waiting.stop()
        self._terminal.raw(as_json(value, indent=None if self.as_events else 2) + "\n")

    def say(self, text: str) -> None:
        """Print a plain line of the result."""
        self._waiting.stop()
        self._terminal.line(escape(text))

    def text(self, text: str) -> None:
        """Print a text unchanged, for another program to read."""
        self._waiting.stop()
        self._terminal.raw(text)

    def pass_on(self, stream: int, text: str) -> None:
        """Print what another merlab printed on its stdout (1) or stderr (2), on the same stream of this one."""
        self._waiting.stop()
        self._terminal.raw(text, stream)

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

    @property
    def is_read(self) -> bool:
        """Report whether somebody can still read stdout: who read a pipe may have gone."""
        return self._terminal.is_read

    def note(self, text: str) -> None:
        """Print a line of progress."""
        if self.verbosity >= 0:
            self.aside(text)

    def aside(self, text: str) -> None:
        """Print a line beside the output of another program, also with -q."""
        self._waiting.stop()
        self._terminal.err.print(f"[faint]{escape(text)}[/]", soft_wrap=True)

    def remark(self, text: str, hint: str) -> None:
        """Print a line that is also needed with -q, with what to type."""
        self._waiting.stop()
        self._terminal.err.print(f"[warn]![/] {escape(f'{text} {hints.rendered(hint)}')}", soft_wrap=True)

    # -- a run, while it happens --------------------------------------------------------------------------------------

    def hear(self, event: Event) -> None:
        """Print an event of a run; with --json only a line of progress, or with --events the event itself."""
        self.mark(event)
        if self.as_events:
            self._terminal.raw(as_json(events.to_json(event)) + "\n")
        if not self.as_json:
            self._run.hear(event)
        elif isinstance(event, events.StepBegins):
            self._waiting.start(f"step {event.step.number}: {event.step.title}")
        elif isinstance(event, events.StepEnds):
            self._waiting.stop()
            if self.verbosity >= 0:
                outcome = event.outcome
                took = "" if polling.is_slowed() else f" ({outcome.seconds:.1f} s)"
                self._terminal.err.print(f"step {outcome.step.number}: {outcome.verdict.value}{took}")

    def record(self, path: str) -> None:
        """Record into a file, until `end`, what goes to stdout. Raise LabError if it cannot be written."""
        self._recording = Recording(path, *shutil.get_terminal_size((80, 24)))
        self._terminal.record(self._recording)

    def mark(self, event: Event) -> None:
        """Set a marker in the recording, if there is one, where a step begins."""
        if self._recording is not None and isinstance(event, events.StepBegins):
            self._recording.marker(f"{event.step.number}  {event.step.title}")

    def presenter(
        self, keys: Keys, state: Callable[[], tuple[str, RequestPath | None]], minutes: float | None, last: int
    ) -> Presenter:
        """Return the listener that shows a run command by command; see Presenter."""
        return Presenter(
            self._terminal, keys, state=state, terms=self._terms, minutes=minutes, last=last, mark=self.mark
        )

    def awaits(self, what: str) -> None:
        """Start to show that `what` is awaited, until `close`."""
        self._waiting.start(f"waiting: {what}")

    def doing(self, what: str) -> None:
        """Show that `what` is being done, until `close`; in a pipe, now and then a line."""
        self._waiting.change(what)

    def verdict(self, report: Report) -> None:
        """Print the verdict of a run: what was proved and what to do next, or the cause and what to type."""
        self._waiting.stop()
        if report.matrix and self.verbosity >= 0:
            verdicts.matrix(self._terminal, report.matrix)
        if report.error is not None:
            self.error(report.error)
        else:
            verdicts.of_run(self._terminal, report, self._terms)

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

    def kernels(self, at_hand: Sequence[tuple[str, str]], packages: Sequence[tuple[str, str]], names: str) -> None:
        """Print the kernels at hand with their images, those of packages with the command to get them, and `names`."""
        views.kernels(self._terminal, at_hand, packages, names)

    def status(self, described: Mapping[str, Any]) -> None:
        """Print a picture of the lab."""
        views.status(self._terminal, described)

    def benchmark(self, summary: BenchSummary) -> None:
        """Print what a benchmark measured, and what follows from it."""
        self._waiting.stop()
        bench_view.benchmark(self._terminal, summary)

    def conversation(self, context: TraceContext) -> Conversation:
        """Return the listener that prints a trace as a conversation."""
        return Conversation(self._terminal, context)

    def trace_event(self, event: TraceEvent, *, as_json: bool) -> None:
        """Print one event of the trace as a line, or as an object."""
        views.trace_event(self._terminal, event, as_json=as_json)

    def close(self) -> None:
        """Stop everything that still moves on the terminal."""
        self._waiting.stop()

    def end(self) -> None:
        """End the recording, if there is one; nothing is printed after that."""
        if self._recording is not None:
            self._terminal.record(None)
            self._recording.close()
            self._recording = None

    @property
    def lost(self) -> OSError | None:
        """Describe why not everything could be written, unless the reader closed the stream."""
        return self._terminal.lost
