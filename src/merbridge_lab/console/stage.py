"""The screen of a demo: the step, its state, the commands with their output. Values only; nothing here prints."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from merbridge_lab.text import lines_of, printable

if TYPE_CHECKING:
    from merbridge_lab.command_events import Excerpt

#: Rows that a frame uses at most, so that it fits a projector.
MOST_ROWS = 20
#: Rows below which the picture is left out.
_WITH_PICTURE = 14
#: Lines of one output that the audience can read.
_MOST_OUTPUT = 8
#: Lines of an output that stay if there is no room for all of it.
_FEWEST_OUTPUT = 2
#: What to notice of it then.
_FEWEST_NOTICES = 4
#: Commands of one block.
_MOST_COMMANDS = 4
_INDENT = "   "
#: The indent of the rest of a command that is too long for one line.
_REST = "     "
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
    `excerpts` are what matters of a long output.
    """

    commands: tuple[Line, ...]
    typed: int | None = None
    state: str = "waits"
    output: str = ""
    excerpts: list[Excerpt] = field(default_factory=list)
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
    #: Explanations of words that this step is the first to use.
    terms: list[str] = field(default_factory=list)
    keys: str = ""
    clock: str = ""
    unicode: bool = True

    def frame(self, width: int, height: int) -> list[Text]:
        """Return the lines of the screen, at most `height`, each at most `width` cells wide.

        Title, picture and footer always stay. Of the rest, what is new is shown; see _body.
        """
        rows = min(height, MOST_ROWS)
        head = [self._headline(width), Text("")]
        if self.picture and rows > _WITH_PICTURE:
            head += [*self.picture, Text("")]
        terms = [Text(each, style="dim") for term in self.terms for each in _wrapped(self._say(term), width, _INDENT)]
        shown = [*self._body(width, max(rows - len(head) - len(terms) - 2, 1)), *terms]
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
            line.append("  " + state, style="bold")
        return line

    def _body(self, width: int, room: int) -> list[Text]:
        """Return the lines between picture and footer, at most `room`.

        If they are too many, the narration goes first, then the long outputs of earlier commands and the earliest of
        these commands, then what the audience has just read. Only what is too long alone is cut in its middle.
        """
        intro = [Text(each) for each in _wrapped(self._say(self.intro), width, _INDENT)]
        blocks = [self._block(block, width) for block in self.blocks]
        verdict = [line for text, style in self.verdict for line in self._found(text, style, width)]
        parts = [[*intro, Text("")] if intro and blocks else intro, *blocks, verdict]

        def brief(number: int) -> list[Text]:
            return self._block(self.blocks[number - 1], width, brief=True)

        def narration(_number: int) -> list[Text]:
            return intro

        def without_output(number: int) -> list[Text]:
            return self._block(self.blocks[number - 1], width, brief=True, notices=_MOST_OUTPUT)

        def nothing(_number: int) -> list[Text]:
            return []

        *earlier, last = range(1, len(parts) - 1) or [0]
        old, recent = earlier[:-1], earlier[-1:]
        shorter = [
            (0, narration),
            (0, nothing),
            *((each, brief) for each in old),
            *((each, nothing) for each in old[:-1]),
        ]
        shorter += [(each, without_output) for each in recent] + [(each, nothing) for each in old[-1:]]
        shorter += [(each, brief) for each in recent] + [(each, nothing) for each in recent]
        shorter += [(last, brief)] if last else []
        for number, instead in shorter:
            if sum(map(len, parts)) <= room:
                break
            parts[number] = instead(number)
        return [line for part in parts for line in part][-room:]

    def _found(self, text: str, style: str, width: int) -> list[Text]:
        """Return the lines of a finding: only its mark has a colour, as no colour is legible on every background."""
        lines = [Text(each) for each in _wrapped(self._say(text), width, _INDENT, "  ")]
        for line in lines[:1]:
            line.stylize(style, 0, len(_INDENT) + 1)
        return lines

    def _block(self, block: Block, width: int, *, brief: bool = False, notices: int | None = None) -> list[Text]:
        """Return the lines of a block; if `brief`, without an output that is long; `notices` of its notices at most."""
        lines: list[Text] = []
        left = block.typed
        shown = block.shown
        for number, command in enumerate(shown):
            text, prompt = self._say(command.text), f"{self._say(command.where)}# " if command.where else "$ "
            typed = len(text) if left is None else min(left, len(text))
            left = None if left is None else left - typed
            line = Text(_INDENT + prompt)
            line.append(text[:typed], style="bold")
            line.append(text[typed:])
            mark = " ⏎" if self.unicode else " <Enter>"
            if len(block.commands) > 1:  # a block is shown, not pasted: `merlab steps N` has it whole
                line = self._clipped(line, width - len(mark))
            lines += _folded(line, width - len(mark), len(_INDENT + prompt))
            if block.state == "waits" and number == len(shown) - 1:
                lines[-1].append(mark, style="bold magenta")
        if len(block.commands) > len(shown):
            more = len(block.commands) - len(shown)
            commands = "command" if more == 1 else "commands"
            lines.append(Text(f"{_INDENT}{self._dots} {more} more {commands}", style="dim"))
        lines += self._output(block, width, brief=brief)
        most = notices or (_FEWEST_NOTICES if brief else _MOST_OUTPUT)
        for notice in block.notices[:most]:
            lines += self._noticed(notice, width)
        more = len(block.notices) - most
        return [*lines, *self._noticed(f"{self._dots} {more} more", width)] if more > 0 else lines

    def _output(self, block: Block, width: int, *, brief: bool) -> list[Text]:
        printed = lines_of(block.output.rstrip("\n"))
        lines: list[Text] = []
        more = len(printed)
        if block.excerpts and more > _MOST_OUTPUT:
            if not brief:
                more -= sum(each.covers for each in block.excerpts)
                for each in block.excerpts:
                    lines += [self._printed(each.line, width), *self._noticed(each.meaning, width)]
            left = f"{more} more lines (-v shows them, without --demo)"
        else:
            most = printed if more <= (_FEWEST_OUTPUT if brief else _MOST_OUTPUT) else printed[: _MOST_OUTPUT - 1]
            most = [] if brief and len(most) < more else most
            lines += [self._printed(each, width) for each in most]
            more -= len(most)
            left = f"{more} {'more ' if most else ''}{'line' if more == 1 else 'lines'}"
        return [*lines, Text(f"{_INDENT}{self._dots} {left}", style="dim")] if more else lines

    def _printed(self, line: str, width: int) -> Text:
        return Text(_INDENT + _cut(self._squeezed(line, width), width - len(_INDENT), self._dots))

    def _noticed(self, notice: str, width: int) -> list[Text]:
        gutter = "     │ " if self.unicode else "     | "
        return [
            Text(gutter + each, style="bold magenta") for each in _wrapped(self._say(notice), width - len(gutter), "")
        ]

    def _clipped(self, line: Text, width: int) -> Text:
        """Return a line that fits, with dots at its end if it did not."""
        return line if line.cell_len <= width else line[: width - len(self._dots)].append(self._dots)

    def _squeezed(self, line: str, width: int) -> str:
        """Return a line of output; if it is too wide, its columns are set closer together."""
        told = self._say(line).expandtabs()
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


def _folded(line: Text, width: int, begin: int) -> list[Text]:
    """Fold a command over several lines as a shell continues it, at a blank outside of quotes: it can be pasted.

    `begin` is where the command begins, after the prompt.
    """
    parts = []
    while cell_len(line.plain) > width:
        at = _last_blank(line.plain, begin, width - len(" \\"))
        begin = len(_REST)
        if at is None:  # one word that is too long
            parts.append(line[:width])
            line = line[width:]
        else:
            parts.append(line[:at].append(" \\", style="dim"))
            line = Text(_REST).append_text(line[at + 1 :])
    return [*parts, line]


def _last_blank(command: str, begin: int, most: int) -> int | None:
    """Return the place of the last blank before `most` that is between two words of a shell; None if there is none."""
    found, quote, depth = None, "", 0
    for place, character in enumerate(command[: most + 1]):
        if character in "'\"" and quote in ("", character):
            quote = "" if quote else character
        elif character in "()" and not quote:
            depth += 1 if character == "(" else -1
        elif character == " " and not quote and not depth and place > begin:
            found = place
    return found
