"""What a lab reports while a step acts: the commands that a person would type, and what they print."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class CommandTranscript:
    """A command as a person would type it, and what it printed."""

    command: str
    output: str = ""

    def added_since(self, before: CommandTranscript) -> list[str]:
        """Return the lines that are not in `before`, each with a plus sign.

        bpftool describes a map or a program in several lines. Of those, return only the first, with id, type and name.
        """
        known = set(lines_of(before.output))
        new = [line for line in lines_of(self.output) if line not in known]
        heads = [line for line in new if re.match(r"\d+: ", line)] or new
        return [f"+ {line}" for line in heads] or ["(nothing new)"]


@dataclass(frozen=True)
class CommandBegins:
    """A person would type these commands now; several are one block that runs together.

    With `runs` false they are only shown: what they would create exists already.
    """

    commands: tuple[str, ...]
    runs: bool = True


@dataclass(frozen=True)
class Excerpt:
    """A line of output that matters, perhaps shortened, and its meaning; it stands for `covers` lines of the output."""

    line: str
    meaning: str
    covers: int = 1


@dataclass(frozen=True)
class CommandOutput:
    """What the command that began last printed.

    `excerpts` are what matters of a long output: a screen without room for all of `text` shows these instead.
    """

    text: str
    excerpts: tuple[Excerpt, ...] = ()


@dataclass(frozen=True)
class CommandEnds:
    """The command that began last has ended."""

    commands: tuple[str, ...]
    output: str = ""


@dataclass(frozen=True)
class Notice:
    """What a spectator should notice about the command that began last, in one line."""

    text: str


@dataclass(frozen=True)
class ProofNeeds:
    """Something runs that nobody would type: only the proof needs it. `what` describes it in one line."""

    what: str


CommandEvent = CommandBegins | CommandOutput | CommandEnds | Notice | ProofNeeds


class RunningCommand:
    """A command that was shown to the audience and runs now; `tell` gets what happens meanwhile."""

    def __init__(self, tell: Callable[[CommandEvent], None]) -> None:
        self._tell = tell
        self.output = ""

    def prints(self, output: str, excerpts: tuple[Excerpt, ...] = ()) -> None:
        """Report what the command printed, and what matters of it if it is long."""
        self.output += output
        if output:
            self._tell(CommandOutput(output, excerpts))

    def notice(self, text: str) -> None:
        """Point out, in one line, what a spectator should notice."""
        self._tell(Notice(text))
