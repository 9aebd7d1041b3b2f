"""What a lab reports while a step acts: the commands that a person would type, and what they print."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CommandBegins:
    """A person would type these commands now; several are one block that runs together.

    With `runs` false they are only shown: what they would create exists already.
    """

    commands: tuple[str, ...]
    runs: bool = True


@dataclass(frozen=True)
class CommandOutput:
    """What the command that began last printed."""

    text: str


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
