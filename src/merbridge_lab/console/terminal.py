"""The output streams: stdout for results, stderr for progress and errors, and the few forms of text."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import textwrap
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.theme import Theme

from merbridge_lab import signals
from merbridge_lab.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from merbridge_lab.console.recording import Recording
    from merbridge_lab.evidence import Reading

_THEME = Theme(
    {
        "pass": "green",
        "fail": "bold red",
        "error": "bold red",
        "skip": "yellow",
        "warn": "magenta",
        "cmd": "bold",
        "faint": "dim",
        "title": "bold",
    }
)
MARK = {"pass": "✔", "fail": "✘", "error": "✘", "skip": "-", "warn": "!"}
_PLAIN_WIDTH = 100


class _Unbroken:
    """A stream that goes quiet if its reader closes it, so that `merlab up | head -1` still finishes its work.

    A terminal that disappears counts as its SIGHUP. If there is no space for the output, `lost` reports it at the end:
    an error raised by a print could strike between two changes.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.recording: Recording | None = None
        self._open = True
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        if self.recording is not None:
            self.recording.output(text)
            self.lost = self.lost or self.recording.lost
            if not self._stream.isatty():
                return len(text)
        if self._open:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                return self.write(text.encode("ascii", "replace").decode("ascii"))
            except (OSError, ValueError) as error:
                self._close(error)
        return len(text)

    def flush(self) -> None:
        if self._open:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._close(error)

    def isatty(self) -> bool:
        return self._stream.isatty() or self.recording is not None

    def is_read(self) -> bool:
        """Report whether somebody can still read it: who read a pipe may have gone."""
        if not self._open:
            return False
        asked = select.poll()
        try:
            asked.register(self._stream, 0)
            return not any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))
        except (OSError, ValueError):  # no descriptor: it is in memory
            return True

    def _close(self, why: OSError | ValueError) -> None:
        self._open = False
        if isinstance(why, OSError) and why.errno == errno.EIO:
            signals.hang_up()
        elif isinstance(why, OSError) and why.errno != errno.EPIPE:
            self.lost = why
        # At exit, Python would try to write what it still buffers for the stream, and fail.
        if self._stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # no descriptor left, or closed already
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


class _Filtered(RichConsole):
    """The one place where text becomes terminal output: control characters of others are not obeyed."""

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - rich's own options, handed on
        return super().render_str(printable(text), **options)


def _rich(stream: _Unbroken, *, color: bool) -> RichConsole:
    recording = stream.recording
    return _Filtered(
        force_terminal=True if recording else None,
        file=stream,  # type: ignore[arg-type]  # as much of a text stream as rich uses
        theme=_THEME,
        highlight=False,
        emoji=False,
        no_color=not color or None,
        width=recording.width if recording else None if stream.isatty() or os.environ.get("COLUMNS") else _PLAIN_WIDTH,
        height=recording.height if recording else None,
    )


class Terminal:
    """Both streams; `verbosity` is below 0 for -q, above for -v.

    While there is a recording, what goes to stdout also goes there; if stdout is no terminal, it goes there alone.
    """

    def __init__(self, *, verbosity: int, color: bool) -> None:
        self.verbosity, self._color = verbosity, color
        self._streams = _Unbroken(sys.stdout), _Unbroken(sys.stderr)
        self.out, self.err = (_rich(stream, color=color) for stream in self._streams)

    def record(self, recording: Recording | None) -> None:
        """Send what goes to stdout also to `recording`; None ends that."""
        self._streams[0].recording = recording
        self.out = _rich(self._streams[0], color=self._color)

    @property
    def is_read(self) -> bool:
        """Report whether somebody can still read stdout."""
        return self._streams[0].is_read()

    @property
    def lost(self) -> OSError | None:
        """Describe why not everything could be written, unless the reader closed the stream."""
        return next((stream.lost for stream in self._streams if stream.lost is not None), None)

    @property
    def unicode(self) -> bool:
        """Report whether the terminal can show more than ASCII."""
        return self.out.encoding.startswith("utf")

    def raw(self, text: str, stream: int = 1) -> None:
        """Write for another program to read: unchanged into a pipe or file, and filtered on a terminal.

        `stream` is 1 for stdout, 2 for stderr.
        """
        to = self._streams[stream - 1]
        to.write(printable(text) if to.isatty() else text)
        to.flush()

    def line(self, text: str) -> None:
        """Print a line of the result unchanged, with markup, and never wrap it."""
        self.out.print(text, soft_wrap=True)

    def prose(self, text: str, by: int, *, mark: str = "", hanging: str = "", style: str = "default") -> None:
        """Print prose, wrapped to the width and indented; `mark` precedes its first line, `hanging` the others."""
        # Names and paths stay whole: nobody finds helloworld-v1 if a line ends after its hyphen.
        folded = textwrap.wrap(
            " ".join(text.split()), max(self.out.width - by, 20), break_on_hyphens=False, break_long_words=False
        )
        for number, line in enumerate(folded):
            before = mark if mark and not number else hanging or " " * by
            self.line(f"{before}[{style}]{escape(line)}[/]")

    def explain(self, terms: Sequence[str], by: int) -> None:
        """Print explanations of words, indented."""
        for term in terms:
            self.prose(term, by, style="faint")

    def drawing(self, lines: Sequence[Text]) -> None:
        """Print a drawing, and an empty line below it."""
        for line in lines:
            self.out.print(line, soft_wrap=True)
        self.line("")

    def evidence(self, readings: Sequence[Reading]) -> None:
        """Print each reading: its source, and its values before and after."""
        for reading in readings:
            before = "" if reading.before is None else f"{reading.before} → "
            text = f"{reading.source}: {before}{reading.after} {reading.unit}".rstrip()
            self.line(f"       [faint]{escape(text)}[/]")
