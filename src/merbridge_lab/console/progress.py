"""What is awaited, and for how long: a moving line on a terminal, an occasional plain one in a pipe."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from merbridge_lab import polling
from merbridge_lab.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from merbridge_lab.console.terminal import Terminal

#: In a pipe, a wait shorter than this many seconds gets no line; a longer one gets another line at every interval.
_WORTH_A_LINE = 1.0
_BETWEEN_LINES = 5.0


class Waiting:
    """Shows on stderr what `merbridge_lab.polling` waits for."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._progress: Progress | None = None
        self._due = _WORTH_A_LINE
        self._what: str | None = None
        self._next_line = 0.0

    def start(self, what: str) -> None:
        """Start to show that `what` is being done."""
        self.stop()
        self._what = what
        if self._terminal.verbosity < 0:
            return
        polling.on_progress(self._tell)
        if self._terminal.err.is_terminal:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=self._terminal.err,
                transient=True,
            )
            self._progress.add_task(escape(printable(what)))
            self._progress.start()

    def change(self, what: str) -> None:
        """Show `what` instead of what was shown; in a pipe, print it if nothing was printed for some seconds."""
        if self._terminal.verbosity < 0:
            return
        self._what = what
        if self._progress is not None:
            for task in self._progress.task_ids:
                self._progress.update(task, description=escape(printable(what)))
        elif self._terminal.err.is_terminal:
            self.start(what)
        elif (now := time.monotonic()) >= self._next_line:
            self._terminal.err.print(escape(printable(what)), soft_wrap=True)
            self._next_line = now + _BETWEEN_LINES

    def _tell(self, what: str, seconds: float) -> None:
        if self._progress is not None:
            for task in self._progress.task_ids:
                self._progress.update(task, description=f"waiting: {escape(printable(what))}")
        elif seconds < _WORTH_A_LINE:
            self._due = _WORTH_A_LINE
        elif seconds >= self._due:
            self._terminal.err.print(f"still waiting: {escape(what)} ({seconds:.0f} s)", soft_wrap=True)
            self._due = seconds + _BETWEEN_LINES

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Take the moving line away for the duration of the block, which prints."""
        what = self._what
        self.stop()
        try:
            yield
        finally:
            if what is not None:
                self.start(what)

    def stop(self) -> None:
        """Stop everything that still moves."""
        self._what = None
        polling.on_progress(None)
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
