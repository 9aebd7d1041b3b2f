"""A demo: a listener of the run that stops before each command until the presenter goes on."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live

from merbridge_lab import events, hints, request_path
from merbridge_lab.command_events import CommandBegins, CommandEnds, CommandOutput, Notice, ProofNeeds
from merbridge_lab.console import picture
from merbridge_lab.console.keys import BACK, ENTER, OTHER, QUIT, TAB, Keys
from merbridge_lab.console.stage import Block, Stage, shortened
from merbridge_lab.evidence import Verdict
from merbridge_lab.observation import Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from merbridge_lab.console.terminal import Terminal
    from merbridge_lab.console.terms import Terms
    from merbridge_lab.evidence import Finding
    from merbridge_lab.model import Step
    from merbridge_lab.report import StepOutcome
    from merbridge_lab.request_path import RequestPath

#: Characters that one key types on, and how long each takes at most when nobody types, in seconds.
_STROKE = 3
_TYPING = 0.02
_KEYS = "Enter: run · Tab: run at once · b: back · q: leave"
_IN_PLACE = "Enter: go on · b: back · q: leave"
_NEXT = "Enter: next step · b: back · q: leave"
_LAST = "Enter: end · b: back · q: leave"
_BUSY = "running … · Ctrl-C: stop"


class Presenter:
    """Shows a run command by command.

    `state` describes the lab now: in a few words, for the headline, and as the path that a request takes, None if there
    are no pods. `minutes` is the time that the presenter has. `mark` is called with each event first. `terms` are the
    words to explain. `last` is the number of the last step of the run.
    """

    def __init__(
        self,
        terminal: Terminal,
        keys: Keys,
        *,
        state: Callable[[], tuple[str, RequestPath | None]],
        mark: Callable[[events.Event], None],
        terms: Terms,
        minutes: float | None = None,
        last: int | None = None,
    ) -> None:
        self._terminal, self._keys, self._state = terminal, keys, state
        self._mark, self._minutes, self._last = mark, minutes, last
        self._terms = terms
        self._stage = Stage(unicode=terminal.unicode)
        self._began = time.monotonic()
        self._waited = 0.0
        #: The commands of this step so far, and how many of them are only repeated, since the presenter went back.
        self._number = self._repeat = 0
        self._live = Live(console=terminal.out, screen=True, auto_refresh=False)

    def clock(self) -> float:
        """Return the seconds that the run took so far: time that the presenter waits does not count."""
        return time.monotonic() - self._waited

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Take the whole screen for the duration of the block, and give it back."""
        with self._live:
            yield

    def _look(self) -> None:
        """Read the state of the lab, for the headline and the picture."""
        self._stage.state, path = self._state()
        self._paint(path)

    def _paint(self, path: RequestPath | None) -> None:
        width = self._terminal.out.width
        if path is None:
            self._stage.picture = []
        elif width < picture.WIDE:
            self._stage.picture = [picture.legend(path, width, unicode=self._terminal.unicode)]
        else:
            self._stage.picture = picture.lines(path, width, unicode=self._terminal.unicode)

    def _draw(self) -> None:
        width, height = self._terminal.out.size
        self._live.update(Group(*self._stage.frame(width, height)), refresh=True)

    def _bar(self, keys: str) -> None:
        passed = int(time.monotonic() - self._began)
        self._stage.keys = keys
        self._stage.clock = f"{passed // 60}:{passed % 60:02}{f' of {self._minutes:g}:00' if self._minutes else ''}"

    # -- events -----------------------------------------------------------------------------------------------------

    def hear(self, event: events.Event) -> None:
        """Show an event; wait for the presenter before a command. Raises BackRequested, QuitRequested, Interrupted."""
        self._mark(event)
        stage = self._stage
        if isinstance(event, events.StepBegins):
            self._begin(event.step)
        elif isinstance(event, CommandBegins):
            self._command(event)
        elif isinstance(event, CommandOutput):
            stage.blocks[-1].output += event.text
            stage.blocks[-1].excerpts += event.excerpts
        elif isinstance(event, Notice):
            stage.blocks[-1].notices.append(self._explained(event.text))
        elif isinstance(event, ProofNeeds) and stage.blocks:
            stage.blocks.append(Block((), notices=[f"for the proof: {self._explained(event.what)}"]))
        elif isinstance(event, CommandEnds):
            stage.blocks[-1].state = "done"
            self._look()
        elif isinstance(event, events.CheckEnds):
            stage.verdict.append(self._sentence(event.outcome.finding))
            self._explained(event.outcome.finding.why)
        elif isinstance(event, events.StepEnds):
            self._end(event.outcome)
        self._draw()

    def _begin(self, step: Step) -> None:
        self._stage = Stage(f"{step.number}  {step.title}", intro=step.narration, unicode=self._terminal.unicode)
        self._explained(step.narration)
        self._look()
        self._number = 0
        self._bar(_BUSY)

    def _explained(self, text: str) -> str:
        """Return `text`, and show from now on what words mean that it is the first to use."""
        self._stage.terms += self._terms.new_in(text)
        return text

    def _command(self, event: CommandBegins) -> None:
        block = Block(tuple(shortened(hints.command(each)) for each in event.commands), typed=0)
        if not event.runs:
            block.notices.append("in place already")
        self._stage.blocks.append(block)
        self._number += 1
        if self._number <= self._repeat:
            block.typed = None
        else:
            self._repeat = 0
            with self._waiting():
                self._type(block, _KEYS if event.runs else _IN_PLACE)
            self._stage.terms.clear()  # they were read while the command waited
        block.state = "runs"
        self._bar(_BUSY)

    def _sentence(self, finding: Finding) -> tuple[str, str]:
        place = {Verdict.PASS: 0, Verdict.FAIL: 1}.get(finding.verdict, 2)
        return f"{'✔✘-'[place]} {finding.why}", ("bold green", "bold red", "bold yellow")[place]

    def _end(self, outcome: StepOutcome) -> None:
        self._repeat = 0  # of a step that, the second time, had fewer commands
        if outcome.reason:
            self._stage.verdict.append((f"- {outcome.reason}", "bold yellow"))
        self._look()
        if isinstance(outcome.seen, Observation):
            self._paint(request_path.observed(outcome.seen))
        if outcome.verdict is Verdict.ERROR or outcome.reason == events.LEFT:
            return
        keys = _LAST if outcome.step.number == self._last else _NEXT
        with self._waiting():
            while True:
                self._bar(keys)
                self._draw()
                key = self._keys.read(self._tick(keys), results=True)
                if key == BACK and self._number:
                    self._go_back(self._number - 1)
                if key == QUIT:
                    raise events.QuitRequested
                if key in (ENTER, TAB):
                    return

    # -- the presenter's keys ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - began

    def _tick(self, keys: str) -> Callable[[], None]:
        def tick() -> None:
            self._bar(keys)
            self._draw()

        return tick

    def _type(self, block: Block, keys: str) -> None:
        """Wait until the presenter has typed the command and pressed Enter. Raises BackRequested, QuitRequested.

        `keys` is the footer. A command that does not run is there at once.
        """
        total = sum(len(each.text) for each in block.shown)
        typed = total if keys == _IN_PLACE else 0
        block.typed = typed
        while True:
            self._bar(keys)
            self._draw()
            key = self._keys.read(self._tick(keys))
            if key == QUIT:
                raise events.QuitRequested
            if key == BACK and self._number > 1:
                self._go_back(self._number - 2)
            if key == TAB:
                break
            if key == ENTER:
                self._type_on(block, typed, total)
                break
            if key == OTHER:
                block.typed = typed = min(typed + _STROKE, total)
        block.typed = None

    def _type_on(self, block: Block, typed: int, total: int) -> None:
        """Type the rest as a person would; a key ends that."""
        block.state = "runs"
        self._bar(_BUSY)
        pause = min(_TYPING * _STROKE, self._keys.most_typing * _STROKE / max(total, 1))
        for typed_now in range(typed, total, _STROKE):
            block.typed = typed_now
            self._draw()
            if self._keys.pending(pause) is not None:
                return

    def _go_back(self, repeat: int) -> None:
        """Begin the step again, and repeat `repeat` commands without waiting. Raises BackRequested."""
        self._repeat, self._number = repeat, 0
        self._stage.blocks.clear()
        self._stage.verdict.clear()
        raise events.BackRequested
