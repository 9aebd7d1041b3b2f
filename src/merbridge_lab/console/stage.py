"""The screen of a demo: the step, its state, the commands with their output. Values only; nothing here prints."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from merbridge_lab.text import lines_of, printable

#: Rows that a frame uses at most, so that it fits a projector.
MOST_ROWS = 20
#: Rows below which the picture is left out.
_WITH_PICTURE = 14
#: Lines of one output that the audience can read.
_MOST_OUTPUT = 8
#: Commands of one block.
_MOST_COMMANDS = 4
_INDENT = "   "
_INSIDE = re.compile(r"nsenter --net=\S*/netns/(?P<pod>\S+) iptables-(?:nft|legacy)(?P<rest>.*)")


@dataclass(frozen=True)
class Line:
    """A command as the screen shows it: `where` is the pod in whose network namespace a root shell runs it, or ""."""

    text: str
    where: str = ""


def shortened(command: str) -> Line:
    """Return a command as it is typed in `merlab shell POD --netns`, where the right iptables is first on PATH."""
    found = _INSIDE.fullmatch(command)
    return Line(f"iptables{found['rest']}", found["pod"]) if found else Line(command)


@dataclass
class Block:
    """One command, or a block of commands that runs together, as the screen shows it.

    `typed` is how many characters of it were typed on so far, None for all. `state` is "waits", "runs" or "done".
    """

    commands: tuple[Line, ...]
    typed: int | None = None
    state: str = "waits"
    output: str = ""
    notices: list[str] = field(default_factory=list)

    @property
    def shown(self) -> tuple[Line, ...]:
        """The commands that the screen has room for."""
        return self.commands[:_MOST_COMMANDS]


@dataclass
class Stage:
    """Everything that the screen shows now; with `unicode` off, in ASCII."""

    title: str = ""
    state: str = ""
    intro: str = ""
    blocks: list[Block] = field(default_factory=list)
    picture: list[Text] = field(default_factory=list)
    verdict: list[tuple[str, str]] = field(default_factory=list)
    keys: str = ""
    clock: str = ""
    unicode: bool = True

    def frame(self, width: int, height: int) -> list[Text]:
        """Return the lines of the screen, at most `height`, each at most `width` cells wide.

        Title, picture and footer always stay. Of the rest, the newest lines are shown: older ones scroll away.
        """
        rows = min(height, MOST_ROWS)
        body = self._body(width)
        head = [self._headline(width), Text("")]
        if self.picture and rows > _WITH_PICTURE:
            head += [*self.picture, Text("")]
        shown = body[-max(rows - len(head) - 2, 1) :]
        clock = self._say(self.clock)
        room = max(width - cell_len(clock) - 2, 0)
        footer = set_cell_size(_cut(self._say(self.keys), room, self._dots), room) + "  " + clock
        return [*head, *shown, Text(""), Text(footer, style="dim")]

    def _say(self, text: str) -> str:
        """Return a text of others as it may be shown on this terminal."""
        told = printable(text)
        return told if self.unicode else _ascii(told)

    def _headline(self, width: int) -> Text:
        state = self._say(self.state)
        room = width - cell_len(state) - 2 if state else width
        line = Text(set_cell_size(_cut(self._say(self.title), room, self._dots), room), style="bold")
        if state:
            line.append("  " + state, style="bold cyan")
        return line

    def _body(self, width: int) -> list[Text]:
        lines = (
            [Text(each, style="dim") for each in _wrapped(self._say(self.intro), width, _INDENT)] if self.intro else []
        )
        for block in self.blocks:
            lines += self._block(block, width)
        for text, style in self.verdict:
            lines += [Text(each, style=style) for each in _wrapped(self._say(text), width, _INDENT, "  ")]
        return lines

    def _block(self, block: Block, width: int) -> list[Text]:
        lines: list[Text] = []
        left = block.typed
        shown = block.shown
        for number, command in enumerate(shown):
            text, prompt = self._say(command.text), f"{self._say(command.where)}# " if command.where else "$ "
            typed = len(text) if left is None else min(left, len(text))
            left = None if left is None else left - typed
            line = Text(_INDENT + prompt)
            line.append(text[:typed], style="bold")
            line.append(text[typed:], style="dim")
            if block.state == "waits" and number == len(shown) - 1:
                line.append(" ⏎" if self.unicode else " <Enter>", style="bold yellow")
            if len(block.commands) > 1:  # a block is shown, not pasted: `merlab steps N` has it whole
                line = self._clipped(line, width)
            lines += _folded(line, width)
        if len(block.commands) > len(shown):
            lines.append(Text(f"{_INDENT}{self._dots} {len(block.commands) - len(shown)} more commands", style="dim"))
        printed = lines_of(block.output.rstrip("\n"))
        most = printed if len(printed) <= _MOST_OUTPUT else printed[: _MOST_OUTPUT - 1]
        lines += [Text(_INDENT + _cut(self._squeezed(each, width), width - len(_INDENT), self._dots)) for each in most]
        if len(printed) > len(most):
            lines.append(Text(f"{_INDENT}{self._dots} {len(printed) - len(most)} more lines", style="dim"))
        gutter = "     │ " if self.unicode else "     | "
        for notice in block.notices:
            lines += [
                Text(gutter + each, style="yellow") for each in _wrapped(self._say(notice), width - len(gutter), "")
            ]
        return lines

    def _clipped(self, line: Text, width: int) -> Text:
        """Return a line that fits, with dots at its end if it did not."""
        return line if line.cell_len <= width else line[: width - len(self._dots)].append(self._dots)

    def _squeezed(self, line: str, width: int) -> str:
        """Return a line of output; if it is too wide, its columns are set closer together."""
        told = self._say(line)
        return told if cell_len(told) + len(_INDENT) <= width else re.sub(r"(?<=\S) {2,}", " ", told)

    @property
    def _dots(self) -> str:
        return "…" if self.unicode else "..."


#: What takes the place of characters that ASCII lacks.
_ASCII = {"→": "->", "…": "...", "✔": "+", "✘": "x", "·": ",", "│": "|"}


def _ascii(text: str) -> str:
    for special, plain in _ASCII.items():
        text = text.replace(special, plain)
    return text.encode("ascii", "replace").decode()


def _cut(text: str, width: int, dots: str) -> str:
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(width - len(dots), 0)) + dots


def _wrapped(text: str, width: int, indent: str, hanging: str = "") -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        max(width, 24),
        initial_indent=indent,
        subsequent_indent=indent + hanging,
        break_on_hyphens=False,
    )


def _folded(line: Text, width: int) -> list[Text]:
    """Fold a command over several lines; the continuation is not indented, so that it can be pasted as one."""
    parts = []
    while cell_len(line.plain) > width:
        parts.append(line[:width])
        line = line[width:]
    return [*parts, line]
