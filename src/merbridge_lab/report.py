"""The record of a run, and its JSON as docs and scripts know it (schema 1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from merbridge_lab import __version__, error_ids, hints
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from merbridge_lab.command_events import CommandTranscript
    from merbridge_lab.error_ids import ErrorId
    from merbridge_lab.matrix import CellOutcome
    from merbridge_lab.model import Check, Step

SCHEMA = 1
#: The exit status of a run in which every step was skipped.
_NOTHING = LabError("nothing was seen to hold: every step was skipped", hint="merlab status", id="run.skipped")


@dataclass(frozen=True)
class CheckOutcome:
    """One check of one step: its finding, and after how many evaluations and seconds."""

    check: Check
    finding: Finding
    attempts: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return it as scripts see it."""
        control = self.finding.control
        return {
            "name": self.check.name,
            "verdict": self.finding.verdict.value,
            "reason": self.finding.why,
            "attempts": self.attempts,
            "seconds": round(self.seconds, 3),
            "evidence": [asdict(reading) for reading in self.finding.evidence],
            "control": None
            if control is None
            else {
                "name": control.name,
                "verdict": control.verdict.value,
                "evidence": [asdict(reading) for reading in control.evidence],
            },
        }


@dataclass(frozen=True)
class StepOutcome:
    """One step as it ran; `acted` is whether its act was needed."""

    step: Step
    verdict: Verdict
    seconds: float
    checks: tuple[CheckOutcome, ...] = ()
    shown: tuple[CommandTranscript, ...] = ()
    acted: bool = True
    reason: str | None = None
    #: The section that explains why the act of the step failed.
    failure: ErrorId | None = None
    #: What a demonstrate step saw: an Observation for those that send requests.
    seen: object = None

    def to_json(self) -> dict[str, Any]:
        """Return it as scripts see it."""
        return {
            "number": self.step.number,
            "title": self.step.title,
            "outcome": self.verdict.value,
            "seconds": round(self.seconds, 3),
            "reason": self.reason,
            "acted": self.acted,
            "commands": [hints.command(shown.command) for shown in self.shown],
            "checks": [check.to_json() for check in self.checks],
        }


@dataclass
class Report:
    """What ran, with which outcome and which evidence.

    `standing` are checks of what a proof needs: node, mesh, dataplane (`verify`). `matrix` is what happens with and
    without eBPF and rules. `changes` is what changed during the proof, which makes it invalid.
    """

    command: str
    lab: str
    standing: list[CheckOutcome] = field(default_factory=list)
    steps: list[StepOutcome] = field(default_factory=list)
    matrix: list[CellOutcome] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: LabError | None = None
    #: The rules of sleep stay flushed on purpose (`step 9 --keep`).
    kept: bool = False
    #: The command that fixes the cause of all failures, if it is known; it takes precedence over the hint of a check.
    remedy: str | None = None

    @property
    def hint(self) -> str | None:
        """On a failure or an error, return the next command to type."""
        if self.verdict is Verdict.PASS:
            return None
        if self.error is not None:
            return self.error.hint
        return self.remedy or next((each.check.hint for each in self.failed() if each.check.hint), None)

    @property
    def see(self) -> str | None:
        """On a failure or an error, return the link to the section that explains it."""
        return None if self.verdict is Verdict.PASS else error_ids.see(self._section())

    @property
    def not_compared(self) -> list[str]:
        """Return, one sentence each, what the checks of a proof left out on this machine."""
        told = (each.not_compared for check in self.standing for each in check.finding.evidence)
        return list(dict.fromkeys(sentence for sentence in told if sentence))

    def _section(self) -> str:
        if self.verdict is Verdict.ERROR:
            return (self.error or _NOTHING).id
        if self.remedy:
            return "rules.flushed"
        if failed := next(self.failed(), None):
            return failed.check.name
        if failure := next((step.failure for step in self.steps if step.failure), None):
            return failure
        return "verify.disturbed" if self.changes else "matrix.unexpected"

    @property
    def skipped(self) -> int:
        """Return how many steps, checks, cells and kinds of connection were skipped; a skip is never a pass."""
        return sum(
            (step.verdict is Verdict.SKIP) + sum(check.finding.verdict is Verdict.SKIP for check in step.checks)
            for step in self.steps
        ) + sum(cell.skipped for cell in self.matrix)

    @property
    def verdict(self) -> Verdict:
        """Return the worst verdict; a run in which nothing was seen to hold is no pass."""
        if self.error is not None:
            return Verdict.ERROR
        seen = {step.verdict for step in self.steps}
        cells = (cell.finding.verdict is not Verdict.FAIL for cell in self.matrix)
        if self.changes or not all(check.finding.held for check in self.standing) or not all(cells):
            return Verdict.FAIL
        if Verdict.FAIL in seen:
            return Verdict.FAIL
        return Verdict.PASS if Verdict.PASS in seen else Verdict.ERROR

    @property
    def cause(self) -> str | None:
        """On a failure or an error, return the sentence that names what is wrong and where."""
        for check in self.standing:
            if not check.finding.held:
                return check.finding.why
        for step in self.steps:
            if step.verdict is Verdict.FAIL:
                return next((c.finding.why for c in step.checks if c.finding.verdict is Verdict.FAIL), step.reason)
        for cell in self.matrix:
            if cell.finding.verdict is Verdict.FAIL:
                return cell.finding.why
        if self.changes:
            return self.changes[0]
        return (self.error or _NOTHING).what if self.verdict is Verdict.ERROR else None

    def failed(self) -> Iterator[CheckOutcome]:
        """Return the checks that did not hold."""
        yield from (check for check in self.standing if not check.finding.held)
        for step in self.steps:
            yield from (check for check in step.checks if check.finding.verdict is Verdict.FAIL)

    def to_json(self) -> dict[str, Any]:
        """Return it as scripts see it."""
        return {
            "schema": SCHEMA,
            "merlab": __version__,
            "command": self.command,
            "lab": self.lab,
            "seconds": round(self.seconds, 3),
            "verdict": self.verdict.value,
            "cause": self.cause,
            "hint": hints.rendered(self.hint),
            "see": self.see,
            "skipped": self.skipped,
            "standing": [check.to_json() for check in self.standing],
            "steps": [step.to_json() for step in self.steps],
            "matrix": [cell.to_json() for cell in self.matrix],
            "changes": self.changes,
            "error": error_json(self.error or _NOTHING) if self.verdict is Verdict.ERROR else None,
        }


def error_json(error: LabError) -> dict[str, Any]:
    """Return an error as scripts see it."""
    return {
        "id": error.id,
        "see": error.see,
        "what": error.what,
        "hint": hints.rendered(error.hint),
        "command": error.command,
        "stderr": error.stderr,
    }
