"""Run steps in order, verify after each, and stop if one does not hold."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from merbridge_lab import events, matrix, polling, shortage, signals
from merbridge_lab.errors import ClaimFailedError, LabError
from merbridge_lab.evidence import Verdict
from merbridge_lab.model import Kind
from merbridge_lab.report import CheckOutcome, Report, StepOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from merbridge_lab.error_ids import ErrorId
    from merbridge_lab.events import Listener
    from merbridge_lab.lab import Lab
    from merbridge_lab.model import Check, Step


#: The command that restores flushed rules.
RESTORE = "merlab restore"


class Runner:
    """Runs steps on a lab, and tells `listener` what happens while it happens.

    `patience` is how many seconds a check of an ensure step may take to pass. With `shows_all`, an ensure step whose
    state exists already shows its commands all the same. `clock` returns seconds; in a demo it stands still while the
    presenter waits.
    """

    def __init__(
        self,
        lab: Lab,
        listener: Listener = events.ignore,
        *,
        patience: float = 20.0,
        shows_all: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lab = lab
        self.tell = listener
        lab.listen(listener)
        self.patience = patience
        self._shows_all = shows_all
        self._clock = clock

    def run(self, report: Report, steps: Iterable[Step]) -> Report:
        """Run `steps` one after another into `report`; stop after the first that does not hold.

        A LabError ends the run and is put into the report, with the step that it ended. Interrupted passes through.
        """
        began = self._clock()
        try:
            with shortage.told():
                self._run(report, steps)
        except LabError as error:
            report.error = error
        finally:
            report.seconds += self._clock() - began
        return self._with_remedy(report)

    def _run(self, report: Report, steps: Iterable[Step]) -> None:
        for step in steps:
            signals.checkpoint()
            if not self._shown_to_its_end(step, report):
                break

    def _shown_to_its_end(self, step: Step, report: Report) -> bool:
        """Run a step, again if a listener asks to go back into it; return whether the run goes on."""
        while True:
            outcome = self._step(step, report)
            report.steps.append(outcome)
            try:
                self.tell(events.StepEnds(outcome))
            except events.BackRequested:
                report.steps.pop()
                continue
            except events.QuitRequested:
                return False
            return outcome.verdict not in (Verdict.FAIL, Verdict.ERROR) and outcome.reason != events.LEFT

    def prove(self, report: Report, *, standing: Sequence[Step], steps: Sequence[Step]) -> Report:
        """Prove into `report` that the lab does what it claims: its state, `steps` and the matrix hold.

        Stop at the first part that does not hold. A change during the proof makes it invalid.
        """
        for capability in sorted(matrix.NEEDS - self.lab.capabilities):
            report.error = LabError(
                f"there is nothing to prove: {self.lab.why_missing(capability)}",
                hint="merlab step 8..9",
                id="dataplane.none",
            )
            return report
        if not self.stand(report, standing):
            return self._with_remedy(report)
        with self.lab.watched() as passing:
            before = self.lab.fingerprint()
            self.run(report, steps)
            began = time.monotonic()
            try:
                with shortage.told():
                    self._measure(report, before, standing, passing)
            except ClaimFailedError as broken:
                report.changes.append(broken.cause)
            except LabError as error:
                report.error = error
            report.seconds += time.monotonic() - began
        return self._with_remedy(report)

    def _with_remedy(self, report: Report) -> Report:
        """Record in the report that something failed while rules are flushed on purpose: no step restores these."""
        if report.verdict is Verdict.PASS:
            return report
        with contextlib.suppress(LabError, OSError):  # if this cannot be determined, it is not the cause
            pods = [self.lab.workload("sleep"), *self.lab.servers()]
            if any(pod.rules.outstanding for pod in pods):
                report.remedy = RESTORE
                if report.error is not None and (report.error.hint or "merlab").startswith("merlab"):
                    report.error.hint = RESTORE
        return report

    def _measure(
        self, report: Report, before: Mapping[str, str], standing: Sequence[Step], passing: Callable[[], list[str]]
    ) -> None:
        if report.verdict is Verdict.PASS:
            self.tell(events.MatrixBegins())
            for outcome in matrix.measure(self.lab):
                report.matrix.append(outcome)
                self.tell(events.CellEnds(outcome))
            report.matrix.sort(key=lambda outcome: outcome.cell.place)
        report.changes = [f"{each}: the result is invalid" for each in passing()]
        report.changes += _differences(before, self.lab.fingerprint())
        if report.verdict is Verdict.PASS:
            report.changes += [
                f"a precondition no longer holds: {check.finding.why}"
                for check in self._look_at(standing)
                if not check.finding.held
            ]

    def stand(self, report: Report, steps: Iterable[Step]) -> bool:
        """Check once, into `report`, whether the state that ensure steps created is still there; change nothing."""
        began = time.monotonic()
        pairs = [(step, check) for step in steps for check in step.verify]
        for number, (step, check) in enumerate(pairs, 1):
            report.standing.append(self._await(check, self.lab, 0.0))
            self.tell(events.Standing(step, report.standing[-1], last=number == len(pairs)))
        report.seconds = time.monotonic() - began
        return all(check.finding.held for check in report.standing)

    def _look_at(self, steps: Iterable[Step]) -> list[CheckOutcome]:
        return [self._await(check, self.lab, 0.0) for step in steps for check in step.verify]

    def _step(self, step: Step, report: Report) -> StepOutcome:
        step = step.on(self.lab.capabilities)
        began = self._clock()
        self.tell(events.StepBegins(step))
        self.lab.shown()  # discard what an interrupted step left

        seen: object = None

        def outcome(
            verdict: Verdict,
            checks: Sequence[CheckOutcome] = (),
            *,
            acted: bool = True,
            reason: str | None = None,
            failure: ErrorId | None = None,
        ) -> StepOutcome:
            seconds, shown = self._clock() - began, tuple(self.lab.shown())
            return StepOutcome(step, verdict, seconds, tuple(checks), shown, acted, reason, failure, seen)

        for capability in sorted(step.needs):
            if capability not in self.lab.capabilities:
                return outcome(Verdict.SKIP, acted=False, reason=self.lab.why_missing(capability))
        try:
            with shortage.told():
                if step.kind is Kind.DEMONSTRATE:
                    seen = self._act(step)
                    checks = [self._report(step, self._look(check, seen)) for check in step.verify]
                    return outcome(_verdict(checks), checks)
                checks, acted = self._ensure(step)
        except ClaimFailedError as broken:
            return outcome(Verdict.FAIL, reason=broken.cause, failure=broken.id)
        except LabError as error:
            report.error = error
            return outcome(Verdict.ERROR, reason=error.what)
        except events.QuitRequested:
            return outcome(Verdict.SKIP, reason=events.LEFT)
        for check in checks:
            self._report(step, check)
        return outcome(_verdict(checks), checks, acted=acted)

    def _act(self, step: Step) -> object:
        """Let the step act; from its beginning again as often as a listener asks to go back."""
        while True:
            try:
                return step.act(self.lab)
            except events.BackRequested:
                self.lab.shown()

    def _ensure(self, step: Step) -> tuple[list[CheckOutcome], bool]:
        checks = self._checks(step, patience=0.0)
        if _verdict(checks) is Verdict.PASS and not step.always:
            if self._shows_all:
                self._show_again(step)
            return checks, False
        self._act(step)
        if step.always and _verdict(checks) is Verdict.PASS:
            return checks, True
        return self._checks(step, patience=self.patience), True

    def _show_again(self, step: Step) -> None:
        with contextlib.suppress(LabError):  # what cannot be named now is not shown
            while True:
                try:
                    self.lab.show_again(step.commands(self.lab))
                except events.BackRequested:
                    continue
                return

    def _checks(self, step: Step, *, patience: float) -> list[CheckOutcome]:
        """Evaluate the checks of the lab and, if all hold, those of the requests that `observe` sends."""
        outcomes = []
        for check in step.verify:
            outcomes.append(self._await(check, self.lab, patience))
            if not outcomes[-1].finding.held:
                return outcomes
        if step.observe is not None:
            seen = step.observe(self.lab)
            outcomes += [self._look(check, seen) for check in step.request_checks]
        return outcomes

    @staticmethod
    def _look(check: Check, subject: object) -> CheckOutcome:
        began = time.monotonic()
        finding = check.evaluate(subject)
        return CheckOutcome(check, finding, 1, time.monotonic() - began)

    @staticmethod
    def _await(check: Check, subject: object, patience: float) -> CheckOutcome:
        began = time.monotonic()
        attempts = 0
        finding = None

        def look() -> bool:
            nonlocal attempts, finding
            attempts += 1
            finding = check.evaluate(subject)
            return finding.held

        if patience:
            polling.poll_until(look, timeout=patience, awaiting=check.description)
        else:
            look()
        assert finding is not None  # noqa: S101 - look() has run at least once
        return CheckOutcome(check, finding, attempts, time.monotonic() - began)

    def _report(self, step: Step, outcome: CheckOutcome) -> CheckOutcome:
        self.tell(events.CheckEnds(step, outcome))
        return outcome


def _verdict(checks: Sequence[CheckOutcome]) -> Verdict:
    """Return PASS if all checks held. A skip beside a pass leaves the pass, and is counted separately."""
    verdicts = {check.finding.verdict for check in checks}
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    return Verdict.PASS if Verdict.PASS in verdicts else Verdict.SKIP


def _differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return [
        f"{name} changed during verification: the result is invalid"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def undo(lab: Lab, steps: Iterable[Step]) -> None:
    """Undo what the ensure steps created, last first. Try every one; then raise the first error."""
    first: LabError | None = None
    with signals.shielded():
        for step in sorted(steps, key=lambda step: -step.number):
            if step.undo is None:
                continue
            try:
                with shortage.told():
                    step.undo(lab)
            except LabError as error:
                first = first or error
    if first is not None:
        raise first
