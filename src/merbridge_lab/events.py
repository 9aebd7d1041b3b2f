"""What happens during a run, while it happens: one typed stream for the console, for `--events`, for a demo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from merbridge_lab import hints
from merbridge_lab.command_events import CommandBegins, CommandEnds, CommandOutput, Notice, ProofNeeds

if TYPE_CHECKING:
    from merbridge_lab.matrix import CellOutcome
    from merbridge_lab.model import Step
    from merbridge_lab.report import CheckOutcome, StepOutcome


@dataclass(frozen=True)
class StepBegins:
    """A step begins."""

    step: Step


@dataclass(frozen=True)
class CheckEnds:
    """A check of a step has its final finding."""

    step: Step
    outcome: CheckOutcome


@dataclass(frozen=True)
class StepEnds:
    """A step has ended."""

    outcome: StepOutcome


@dataclass(frozen=True)
class MatrixBegins:
    """The cells with and without eBPF and rules are measured from now on."""


@dataclass(frozen=True)
class CellEnds:
    """A cell of the matrix was measured."""

    outcome: CellOutcome


@dataclass(frozen=True)
class Standing:
    """A precondition of the proof was checked; `last` is true for the last one, if all hold."""

    step: Step
    outcome: CheckOutcome
    last: bool = False


Event = (
    StepBegins
    | CheckEnds
    | StepEnds
    | MatrixBegins
    | CellEnds
    | Standing
    | CommandBegins
    | CommandOutput
    | CommandEnds
    | Notice
    | ProofNeeds
)
Listener = Callable[[Event], None]


#: Why a step that the presenter left is skipped.
LEFT = "left before its end, on request"


class BackRequested(BaseException):
    """A listener asks to go back to an earlier command: the act of the step begins again."""


class QuitRequested(BaseException):
    """A listener asks to end the run after the step has cleaned up."""


def ignore(event: Event) -> None:
    """Do nothing with an event."""


_NAMES = {
    StepBegins: "step_begins",
    CheckEnds: "check_ends",
    Standing: "standing",
    StepEnds: "step_ends",
    CellEnds: "cell_ends",
    MatrixBegins: "matrix_begins",
    CommandBegins: "command_begins",
    CommandOutput: "command_output",
    CommandEnds: "command_ends",
    Notice: "notice",
    ProofNeeds: "proof_needs",
}


def to_json(event: Event) -> dict[str, Any]:
    """Return an event as `--json --events` prints it: "event" names it, the rest is as in the report."""
    told: dict[str, Any] = {"event": _NAMES[type(event)]}
    if isinstance(event, StepBegins):
        return {**told, "number": event.step.number, "title": event.step.title}
    if isinstance(event, (CheckEnds, Standing)):
        return {**told, "number": event.step.number, "check": event.outcome.to_json()}
    if isinstance(event, (StepEnds, CellEnds)):
        return {**told, "step" if isinstance(event, StepEnds) else "cell": event.outcome.to_json()}
    told |= asdict(event)
    if "commands" in told:
        told["commands"] = [hints.command(each) for each in told["commands"]]
    return told
