"""Sabotage: ways to break or to fake a lab, and what merlab reports about each.

A *lie* is a lab that is not what it claims to be: `verify` must not pass, and its cause must name what and where. An
*oddity* is unusual and harmless: `verify` must pass. Each is a generator: it sabotages, yields while merlab runs, and
repairs what `ensure` of the lab's components would not.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from merbridge_lab import events, matrix
from merbridge_lab.errors import ClaimFailedError, LabError
from merbridge_lab.labs.embedded.managed_lab import ManagedEmbeddedLab
from merbridge_lab.loader import steps
from merbridge_lab.model import Kind
from merbridge_lab.report import Report
from merbridge_lab.runner import Runner, _differences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from merbridge_lab.evidence import Finding

#: Each worker of pytest-xdist has a lab of its own.
NAME = "merlab-sab" + os.environ.get("PYTEST_XDIST_WORKER", "")
STEPS = steps()
STANDING, VERIFY = range(1, 4), range(8, 10)

LIE, ODDITY = "lie", "oddity"


class Scene:
    """The lab under sabotage, and the moments at which a sabotage may strike while merlab runs."""

    def __init__(self, lab: ManagedEmbeddedLab) -> None:
        self.lab = lab
        lab.dataplane._manager._recompiled = None  # each call of merlab compiles for itself, and compares last
        for name in ("observe", "dial"):  # of the scene before: see matrix_begins
            vars(lab).pop(name, None)
        self.struck: list[str] = []
        self._waiting: list[tuple[str, Callable[[], None]]] = []

    def at(self, moment: str, strike: Callable[[], None]) -> None:
        """Strike once, at "step 8 begins", "step 8 ends", "matrix begins" or "cell 1 ends" (and so on).

        Cells are measured earlier than their results are told. Their batches of requests are, in order: 1 the fourth
        cell, whose dials follow ("dials end"), 2 the fifth, 4 the second, 5 the third; "batch 1 ends" (and so on).
        """
        self._waiting.append((moment, strike))

    def _is(self, moment: str) -> None:
        due = [pair for pair in self._waiting if pair[0] == moment]
        self._waiting = [pair for pair in self._waiting if pair[0] != moment]
        for _, strike in due:
            strike()
            self.struck.append(moment)

    def __call__(self, event: events.Event) -> None:
        """Hear what the runner reports."""
        if isinstance(event, events.StepBegins):
            self.step_begins(event.step)
        elif isinstance(event, events.StepEnds):
            self._is(f"step {event.outcome.step.number} ends")
        elif isinstance(event, events.MatrixBegins):
            self.matrix_begins()
        elif isinstance(event, events.CellEnds):
            self.cell_ends()

    def step_begins(self, step: Any) -> None:
        self._is(f"step {step.number} begins")

    def matrix_begins(self) -> None:
        self._cells = self._batches = 0
        observe, dial = self.lab.observe, self.lab.dial

        def observed(*arguments: Any, **more: Any) -> Any:
            self._batches += 1
            number, seen = self._batches, observe(*arguments, **more)
            self._is(f"batch {number} ends")
            return seen

        def dialled(*arguments: Any) -> Any:
            seen = dial(*arguments)
            self._is("dials end")
            return seen

        vars(self.lab).update(observe=observed, dial=dialled)
        self._is("matrix begins")

    def cell_ends(self) -> None:
        self._cells += 1
        self._is(f"cell {self._cells} ends")


@dataclass(frozen=True)
class Sabotage:
    """`cause` is a regular expression that the cause must match; `sabotage` takes a Scene.

    `steps` are the steps to run if the lie is not to `verify`. The `quick` ones run in `make test`; this leaves out
    those that tests/kernel/test_walkthrough_broken.py has, and similar ones. `refused` ones are about the machine, not
    the lab: merlab must report that it cannot work (exit status 3), in words that match `cause`. `shared` ones, and
    those of the machine's trace, touch what all labs of a machine share: no other lab may exist beside them.
    """

    name: str
    kind: str
    what: str
    cause: str
    do: Callable[..., Iterator[None]]
    steps: tuple[int, ...] = ()
    quick: bool = True
    refused: bool = False
    shared: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def is_shared(self) -> bool:
        return self.shared or bool({4, 5} & set(self.steps))

    @contextlib.contextmanager
    def on(self, scene: Scene) -> Iterator[None]:
        with contextlib.contextmanager(self.do)(scene, **self.arguments):
            yield


ALL: list[Sabotage] = []


def _register(name: str, kind: str, cause: str, each: dict[str, list[Any]] | None, more: dict[str, Any]) -> Any:
    def keep(do: Callable[..., Iterator[None]]) -> Callable[..., Iterator[None]]:
        what = " ".join((do.__doc__ or "").split())
        values: list[dict[str, Any]] = [{}]
        for key, options in (each or {}).items():
            values = [value | {key: option} for value in values for option in options]
        quick = more.pop("quick", True)
        for value in values:
            words = {key: option if isinstance(option, str) else option.__name__ for key, option in value.items()}
            ALL.append(
                Sabotage(
                    name.format(**words),
                    kind,
                    what.format(**words),
                    cause.format(**words),
                    do,
                    arguments=value,
                    quick=quick if isinstance(quick, bool) else bool(quick & set(words.values())),
                    **more,
                )
            )
        return do

    return keep


def lie(name: str, cause: str, each: dict[str, list[Any]] | None = None, **more: Any) -> Any:
    """Register a lie; `each` gives its parameters, which `name` and `cause` may name in braces.

    `quick` tells whether it is one of the quick ones, or with which values of its parameters.
    """
    return _register(name, LIE, cause, each, more)


def oddity(name: str, each: dict[str, list[Any]] | None = None, **more: Any) -> Any:
    """Register an oddity."""
    return _register(name, ODDITY, "", each, {"quick": False} | more)


# -- the lab ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def standing_lab(name: str = NAME) -> Iterator[ManagedEmbeddedLab]:
    lab = ManagedEmbeddedLab(name=name)
    try:
        mend(lab)
        yield lab
    finally:
        for part in (lab.dataplane, lab.mesh, lab.node):
            part.remove()
        lab.remove(10)


def mend(lab: ManagedEmbeddedLab) -> None:
    """Repair the lab, as `up` would, and check that it is in order."""
    lab.recover()
    for part in (lab.node, lab.mesh, lab.dataplane):
        part.ensure()
    left = problems(lab)
    assert not left, f"not mended: {left}"


def problems(lab: ManagedEmbeddedLab) -> list[str]:
    return [*lab.node.problems(), *lab.mesh.problems(), *lab.dataplane.problems()]


# -- what merlab says ------------------------------------------------------------------------------------------------


def verify(scene: Scene) -> Report:
    """Return what `merlab verify` reports."""
    report = Report("verify", scene.lab.name)
    runner = Runner(scene.lab, scene)
    return runner.prove(report, standing=[STEPS[n] for n in STANDING], steps=[STEPS[n] for n in VERIFY])


def run_steps(scene: Scene, numbers: tuple[int, ...]) -> Report:
    """Return what `merlab step N` reports for each."""
    report = Report("step", scene.lab.name)
    return Runner(scene.lab, scene, patience=0.1).run(report, [STEPS[n] for n in numbers])


def judge(sabotage: Sabotage, report: Report) -> str | None:
    """Describe what is wrong with merlab's report, or None."""
    told = f"{report.verdict.value}: {report.cause or report.error}"
    if sabotage.kind == ODDITY:
        return None if report.verdict.value == "pass" else told
    if sabotage.refused:
        refused = report.error is not None and re.search(sabotage.cause, report.error.what)
        return None if refused and report.verdict.value == "error" else f"not refused: {told}"
    if report.verdict.value != "fail":
        return f"noticed wrongly: {told}" if report.error else f"NOT NOTICED: {told}"
    if not re.search(sabotage.cause, report.cause or ""):
        return f"the cause does not say {sabotage.cause!r}: {report.cause}"
    return None


#: Cells by their position in the table, as columns of docs/sabotage.md.
def cell_name(cell: matrix.Cell) -> str:
    words = ["eBPF" if cell.ebpf else "no eBPF"]
    words.append(
        {(True, True): "rules", (False, True): "client flushed", (False, False): "all flushed"}[
            cell.client_rules, cell.server_rules
        ]
    )
    return "cell: " + ", ".join(words)


CHANGES = "nothing changed meanwhile"
STILL = "what stood still stands"
#: If every request times out, not every check is evaluated: maximum duration, in seconds.
PATIENCE = 20.0
GIVEN_UP = "given up"


class Looking:
    """Evaluates every check of every step, every cell and the fingerprint, and stops at none."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.lab = scene, scene.lab
        #: check → [(where, why it does not hold, or None)]
        self.found: dict[str, list[tuple[str, str | None]]] = {}

    def note(self, check: str, where: str, why: str | None) -> None:
        self.found.setdefault(check, []).append((where, why))

    def look(self, where: str, checks: Any, subject: object) -> None:
        for check in checks:
            try:
                finding: Finding = check.evaluate(subject)
            except (LabError, OSError) as error:
                self.note(check.name, where, f"error: {error}")
            else:
                self.note(check.name, where, None if finding.held else finding.why)

    def step(self, step: Any) -> None:
        where = f"step {step.number}"
        self.scene.step_begins(step)
        is_ensure = step.kind is Kind.ENSURE
        checks = step.request_checks if is_ensure else step.verify
        try:
            if is_ensure:
                if step.number in (0, 4):
                    step.act(self.lab)
                self.look(where, step.verify, self.lab)
            subject = (step.observe or (lambda _lab: None))(self.lab) if is_ensure else step.act(self.lab)
        except (LabError, ClaimFailedError, OSError) as error:
            for check in checks:
                self.note(check.name, where, f"error: {error}")
        else:
            self.look(where, checks, subject)
        self.lab.shown()
        self.scene._is(f"step {step.number} ends")

    def cells(self) -> None:
        self.scene.matrix_begins()
        try:
            for outcome in matrix.measure(self.lab):
                self.note(cell_name(outcome.cell), "verify", None if outcome.finding.held else outcome.finding.why)
                self.scene.cell_ends()
        except (LabError, ClaimFailedError, OSError) as error:
            self.note("cell: (not measured)", "verify", f"error: {error}")


def _proven(looking: Looking, scene: Scene) -> list[str]:
    """Do what verify proves; return what changed meanwhile. Raise LabError if nothing can be read."""
    with scene.lab.watched() as passing:
        before = scene.lab.fingerprint()
        began = time.monotonic()
        for number in VERIFY:
            if time.monotonic() - began < PATIENCE:
                looking.step(STEPS[number])
        if time.monotonic() - began < PATIENCE:
            looking.cells()
        else:
            looking.found[GIVEN_UP] = []
        return passing() + _differences(before, scene.lab.fingerprint())


def everything(sabotage: Sabotage, scene: Scene) -> dict[str, list[tuple[str, str | None]]]:
    """Evaluate everything that `told` may, and stop at nothing; return check → [(where, why not, or None)]."""
    looking = Looking(scene)
    if sabotage.steps:
        for number in sabotage.steps:
            looking.step(STEPS[number])
        return looking.found
    for number in STANDING:
        looking.look("standing", STEPS[number].verify, scene.lab)
    try:
        changes = _proven(looking, scene)
    except (LabError, ClaimFailedError, OSError) as error:  # verify itself has ended: a precondition did not hold
        changes = [f"error: {error}"]
    looking.note(CHANGES, "verify", changes[0] if changes else None)
    for number in STANDING:
        for check in STEPS[number].verify:
            finding = check.evaluate(scene.lab)
            looking.note(STILL, "verify", None if finding.held else finding.why)
    return looking.found


def told(sabotage: Sabotage, scene: Scene) -> Report:
    """Return merlab's report: `verify`, or `step N` for each of the sabotage's steps."""
    return run_steps(scene, sabotage.steps) if sabotage.steps else verify(scene)


# -- helpers ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def again_and_again(work: Callable[[], None]) -> Iterator[threading.Event]:
    """Call `work` continuously, in a thread, during the block; the event is set after the first call."""
    end, began = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def body() -> None:
        try:
            while not end.is_set():
                work()
                began.set()
                end.wait(0.0005)
        except BaseException as error:  # noqa: BLE001 - shown by the test's thread
            errors.append(error)

    thread = threading.Thread(target=body, name="saboteur")
    thread.start()
    try:
        yield began
    finally:
        end.set()
        thread.join()
    if errors:
        raise errors[0]
