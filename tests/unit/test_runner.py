"""The runner: when it acts, when it checks again, where it stops, what it undoes."""

import time

import pytest

from fake_lab import FakeLab, up
from merbridge_lab import events
from merbridge_lab.command_events import CommandBegins
from merbridge_lab.errors import ClaimFailedError, LabError
from merbridge_lab.evidence import Verdict, fails, holds, skips
from merbridge_lab.lab import CONTROL_CLIENT, DATAPLANE, TRACE
from merbridge_lab.loader import steps
from merbridge_lab.model import Check, Kind, Step
from merbridge_lab.report import Report
from merbridge_lab.runner import Runner, undo


def run(lab, which, *, patience=1.0):
    return Runner(lab, patience=patience).run(Report("up", lab.name), which)


def prove(lab):
    return Runner(lab).prove(Report("verify", lab.name), standing=steps()[1:4], steps=steps()[8:10])


def verdicts(report):
    return [outcome.verdict.value for outcome in report.steps]


def demonstration(number, act, *checks, **more):
    return Step(number, Kind.DEMONSTRATE, act, checks, lambda _lab: [], title=f"step {number}", **more)


ALWAYS = Check("always.holds", "this always holds", lambda seen: holds(f"saw {seen}"))


def test_from_nothing_every_step_acts_and_holds():
    report = run(FakeLab(), steps())
    assert report.verdict is Verdict.PASS
    assert verdicts(report) == ["pass"] * 10
    assert all(outcome.acted for outcome in report.steps)
    assert all(check.finding.held for outcome in report.steps for check in outcome.checks)
    assert all(outcome.shown for outcome in report.steps)


def test_on_a_healthy_lab_ensure_steps_do_not_act_and_demonstrations_do():
    lab = up(FakeLab())
    report = run(lab, steps())
    assert report.verdict is Verdict.PASS
    # The preflight always acts: it shows what is there.
    assert [outcome.acted for outcome in report.steps] == [True, False, False, False, False] + [True] * 5
    assert [part.ensured for part in (lab.node, lab.mesh, lab.dataplane)] == [1, 1, 1]


def test_only_what_is_broken_is_mended():
    lab = up(FakeLab())
    lab.dataplane.problem = "the link connect4 is not pinned"
    report = run(lab, steps())
    assert report.verdict is Verdict.PASS
    assert [part.ensured for part in (lab.node, lab.mesh, lab.dataplane)] == [1, 1, 2]


def test_a_state_that_only_requests_can_refute_is_mended_too():
    """All components are there, and yet no request is served: the witnesses make the step act."""
    lab = up(FakeLab())
    lab.workload("helloworld-v1").rules.flush()
    lab.workload("helloworld-v2").rules.flush()
    lab.dataplane.there = False
    report = run(lab, steps()[2:3])
    assert report.steps[0].acted
    assert report.verdict is Verdict.FAIL
    assert lab.mesh.ensured == 2


def test_the_run_stops_after_the_first_step_that_does_not_hold():
    lab = FakeLab()
    lab.mesh.incurable = "the sidecar of helloworld-v1 does not answer on port 15021"
    report = run(lab, steps(), patience=0.05)
    assert verdicts(report) == ["pass", "pass", "fail"]
    assert report.cause == "the sidecar of helloworld-v1 does not answer on port 15021"
    assert not lab.dataplane.there


def test_checks_are_polled_until_they_hold():
    lab = FakeLab()
    lab.node.ensure()
    lab.mesh.slow = 3
    report = run(lab, steps()[2:3], patience=5)
    assert report.verdict is Verdict.PASS
    assert report.steps[0].checks[0].attempts == 4


def test_patience_ends():
    lab = FakeLab()
    lab.node.ensure()
    lab.mesh.slow = 10**6
    began = time.monotonic()
    report = run(lab, steps()[2:3], patience=0.2)
    assert report.verdict is Verdict.FAIL
    assert report.cause == "mesh is not ready yet"
    assert report.steps[0].checks[0].attempts > 1
    assert time.monotonic() - began < 5


def test_before_it_acts_a_step_looks_once_and_does_not_wait():
    lab = FakeLab()
    began = time.monotonic()
    assert run(lab, steps()[1:2], patience=30).verdict is Verdict.PASS
    assert time.monotonic() - began < 10


def test_a_demonstration_is_looked_at_once():
    looks = []
    never = Check("never.holds", "this never holds", lambda seen: looks.append(seen) or fails("it is false"))
    report = run(FakeLab(), [demonstration(0, lambda _lab: "this", never)], patience=30)
    assert looks == ["this"]
    assert report.cause == "it is false"


def test_all_checks_of_a_demonstration_are_reported_also_after_one_that_fails():
    never = Check("never.holds", "", lambda _seen: fails("it is false"))
    report = run(FakeLab(), [demonstration(0, lambda _lab: "this", never, ALWAYS)])
    assert [check.finding.verdict.value for check in report.steps[0].checks] == ["fail", "pass"]
    assert report.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("missing", "skipped"), [(TRACE, [4, 5]), (CONTROL_CLIENT, [8, 9]), (DATAPLANE, [3, 4, 5])], ids=str
)
def test_without_a_capability_its_steps_are_skipped_with_the_labs_reason(missing, skipped):
    lab = FakeLab()
    lab.capabilities -= {missing}
    report = run(lab, steps()[:8] if missing == DATAPLANE else steps())
    assert [outcome.step.number for outcome in report.steps if outcome.verdict is Verdict.SKIP] == skipped
    assert {o.reason for o in report.steps if o.verdict is Verdict.SKIP} == {lab.why_missing(missing)}
    assert not any(outcome.acted for outcome in report.steps if outcome.verdict is Verdict.SKIP)
    assert report.verdict is Verdict.PASS
    assert report.skipped == len(skipped)


def test_a_run_in_which_all_was_skipped_is_no_pass():
    lab = FakeLab()
    lab.capabilities = frozenset()
    report = run(lab, steps()[4:6])
    assert verdicts(report) == ["skip", "skip"]
    assert report.verdict is not Verdict.PASS
    assert report.skipped == 2


def test_a_step_whose_checks_all_skip_is_no_pass():
    cannot = Check("cannot.look", "", lambda _seen: skips("nothing to look at"))
    report = run(FakeLab(), [demonstration(0, lambda _lab: None, cannot)])
    assert verdicts(report) == ["skip"]
    assert report.verdict is not Verdict.PASS


def test_a_skipped_check_beside_one_that_held_is_counted():
    lab = up(FakeLab(keep=True))
    report = run(lab, steps()[9:])
    assert report.verdict is Verdict.PASS
    assert report.skipped == 1
    assert lab.workload("sleep").rules.outstanding


def test_a_lab_error_ends_the_run_and_stands_in_the_report():
    def act(_lab):
        raise LabError("the disk is full", hint="df /run")

    report = run(FakeLab(), [demonstration(0, act, ALWAYS), demonstration(1, lambda _lab: 1, ALWAYS)])
    assert report.verdict is Verdict.ERROR
    assert (report.error.what, report.error.hint) == ("the disk is full", "df /run")
    assert verdicts(report) == ["error"]
    assert report.steps[0].reason == "the disk is full"


def test_a_lab_error_in_a_check_ends_the_run_too():
    def look(_seen):
        raise LabError("the namespace cannot be entered")

    report = run(FakeLab(), [demonstration(0, lambda _lab: 1, Check("a.b", "", look))])
    assert report.verdict is Verdict.ERROR
    assert report.error.what == "the namespace cannot be entered"


def test_an_act_that_sees_its_claim_fail_is_a_failure_not_an_error():
    def act(_lab):
        raise ClaimFailedError("the pod came up without rules")

    report = run(FakeLab(), [demonstration(0, act, ALWAYS), demonstration(1, lambda _lab: 1, ALWAYS)])
    assert report.verdict is Verdict.FAIL
    assert report.cause == "the pod came up without rules"
    assert verdicts(report) == ["fail"]


def test_a_defect_passes_through():
    with pytest.raises(ZeroDivisionError):
        run(FakeLab(), [demonstration(0, lambda _lab: 1 / 0, ALWAYS)])


def test_what_an_interrupted_step_showed_does_not_appear_in_the_next():
    lab = up(FakeLab())
    lab.show("left by another step")
    (outcome,) = run(lab, steps()[6:7]).steps
    assert [shown.command for shown in outcome.shown] == ["merlab exec sleep -- curl -s helloworld:5000/hello"]


class Watcher:
    """Records what the runner reports."""

    def __init__(self):
        self.seen = []

    def __call__(self, event):
        if isinstance(event, events.StepBegins):
            self.seen.append(("begins", event.step.number))
        elif isinstance(event, events.CheckEnds):
            self.seen.append((event.outcome.check.name, event.outcome.finding.verdict.value))
        elif isinstance(event, events.StepEnds):
            self.seen.append(("ends", event.outcome.step.number, event.outcome.verdict.value))
        elif isinstance(event, events.MatrixBegins):
            self.seen.append(("matrix",))
        elif isinstance(event, events.CellEnds):
            self.seen.append(("cell", event.outcome.finding.verdict.value))


def test_the_observer_is_told_everything_in_order():
    watcher = Watcher()
    Runner(up(FakeLab()), watcher).run(Report("step", "fake"), steps()[7:8])
    assert watcher.seen == [("begins", 7), ("enter.agrees", "pass"), ("ends", 7, "pass")]


def test_the_observer_is_told_of_a_step_that_ran_into_an_error():
    watcher = Watcher()
    lab = FakeLab()
    Runner(lab, watcher).run(Report("step", "fake"), steps()[2:3])
    assert watcher.seen == [("begins", 2), ("ends", 2, "error")]


def test_the_observer_is_told_of_the_matrix():
    watcher = Watcher()
    Runner(up(FakeLab()), watcher).prove(Report("verify", "fake"), standing=[], steps=steps()[8:9])
    assert watcher.seen[-8:] == [("ends", 8, "pass"), ("matrix",), *[("cell", "pass")] * 6]


def test_a_listener_that_goes_back_has_the_step_act_again():
    """The presenter goes back from the request to the flush: the rules are back meanwhile, then flushed again."""
    lab = up(FakeLab())
    began = []

    def presenter(event):
        if isinstance(event, CommandBegins):
            began.append((event.commands[0].rpartition(" ")[2], lab.workload("sleep").rules.outstanding))
            if len(began) == 4:  # before the request
                raise events.BackRequested

    report = Runner(lab, presenter).run(Report("step", "fake"), steps()[9:])
    assert report.verdict is Verdict.PASS
    flushed = [outstanding for _, outstanding in began]
    assert flushed == [False, False, True, True, False, False, True, True, True, True]
    assert len(report.steps[0].shown) == 6


def test_a_listener_that_goes_back_at_the_end_of_a_step_has_it_run_again():
    numbers = []

    def presenter(event):
        if isinstance(event, events.StepEnds):
            numbers.append(event.outcome.step.number)
            if len(numbers) == 1:
                raise events.BackRequested

    report = Runner(up(FakeLab()), presenter).run(Report("step", "fake"), steps()[6:8])
    assert numbers == [6, 6, 7]
    assert [outcome.step.number for outcome in report.steps] == [6, 7]


def test_a_listener_that_leaves_ends_the_run_and_restores_what_was_flushed():
    lab = up(FakeLab())

    def presenter(event):
        if isinstance(event, CommandBegins) and lab.workload("sleep").rules.outstanding:
            raise events.QuitRequested

    report = Runner(lab, presenter).run(Report("step", "fake"), steps()[8:])
    assert not lab.workload("sleep").rules.outstanding
    assert [outcome.verdict for outcome in report.steps] == [Verdict.PASS, Verdict.SKIP]
    assert report.steps[1].reason == events.LEFT
    assert report.skipped == 1


def test_a_step_whose_state_exists_shows_its_commands_only_if_asked():
    for shows_all in (False, True):
        seen = []
        Runner(up(FakeLab()), seen.append, shows_all=shows_all).run(Report("up", "fake"), steps()[1:2])
        begun = [event for event in seen if isinstance(event, CommandBegins)]
        assert [event.runs for event in begun] == [False] * shows_all


# -- what must stand before a proof


def test_verify_looks_and_mends_nothing():
    lab = up(FakeLab())
    lab.dataplane.problem = "the link connect4 is not pinned"
    report = prove(lab)
    assert report.verdict is Verdict.FAIL
    assert report.cause == "the link connect4 is not pinned"
    assert not report.steps
    assert not report.matrix
    assert lab.dataplane.ensured == 1


def test_verify_does_not_wait():
    lab = up(FakeLab())
    lab.mesh.slow = 1
    assert prove(lab).cause == "mesh is not ready yet"


def test_verify_names_rules_flushed_behind_its_back():
    lab = up(FakeLab())
    lab.workload("sleep").rules.flush()
    report = prove(lab)
    assert report.verdict is Verdict.FAIL
    assert report.cause == "there are no ISTIO rules in sleep that could be counted"


def test_verify_passes_with_its_steps_and_its_matrix():
    lab = up(FakeLab())
    before = {pod.name: pod.rules.snapshot().specs("nat") for pod in lab.pods}
    report = prove(lab)
    assert report.verdict is Verdict.PASS, report.cause
    assert [outcome.step.number for outcome in report.steps] == [8, 9]
    assert len(report.matrix) == 6
    assert {pod.name: pod.rules.snapshot().specs("nat") for pod in lab.pods} == before
    assert lab.twins_there == []


def test_what_changes_while_it_is_proven_voids_the_proof():
    lab = up(FakeLab())
    answers = iter([{"the sidecar of sleep": "11"}, {"the sidecar of sleep": "12"}])
    lab.fingerprint = lambda: next(answers)
    report = prove(lab)
    assert report.verdict is Verdict.FAIL
    assert report.cause == "the sidecar of sleep changed during verification: the result is invalid"


def test_what_stood_before_must_stand_when_all_is_measured():
    lab = up(FakeLab())
    real = lab.control_pair

    def control_pair():
        lab.node.problem = "a stranger is in the node"
        return real()

    lab.control_pair = control_pair
    report = prove(lab)
    assert report.verdict is Verdict.FAIL
    assert report.cause == "a precondition no longer holds: a stranger is in the node"


def test_the_matrix_is_not_measured_where_a_step_failed():
    lab = up(FakeLab())
    lab.mute = {"helloworld-v2"}
    report = prove(lab)
    assert report.verdict is Verdict.FAIL
    assert "no server's sidecar delivered 2 of 4 requests of sleep" in report.cause
    assert not report.matrix


def test_a_matrix_cell_that_is_not_as_expected_fails_the_proof_and_is_its_cause():
    lab = up(FakeLab())
    real = lab.logged
    # A bypass that a sidecar records is none.
    lab.logged = lambda nonces: [*real(nonces), "helloworld-v1-twin: a line"]
    report = prove(lab)
    assert report.verdict is Verdict.FAIL
    assert report.cause == (
        "all flushed and without eBPF, a sidecar still handled the request (helloworld-v1-twin: a line)"
    )


# -- what people see


def test_u6_the_seconds_of_a_run_are_without_the_pauses():
    report = Report("up", "fake")
    waited = 0.0

    def presenter(event):
        nonlocal waited
        if isinstance(event, events.StepBegins):
            time.sleep(0.2)
            waited += 0.2

    Runner(FakeLab(), presenter, clock=lambda: time.monotonic() - waited).run(report, steps()[:4])
    assert report.verdict is Verdict.PASS
    assert 0 < report.seconds < 0.5 < 3 * 0.2


def test_u5_the_trace_is_shown_line_by_line_with_its_meaning_below():
    """U5: below the command that reads it are its lines; the English has a separate mark."""
    lab = up(FakeLab())
    lab.shown()
    seen = steps()[5].act(lab)
    (trace,) = [shown for shown in lab.shown() if shown.command == lab.trace_command()]
    lines = trace.output.splitlines()
    assert [line for line in lines if not line.startswith("  = ")] == [event.raw for event in seen.trace]
    assert [line for line in lines if line.startswith("  = ")] == [f"  = {event.sentence()}" for event in seen.trace]
    assert "in this order" not in steps()[5].narration


# -- undo


def test_undo_goes_backwards():
    lab = up(FakeLab())
    undo(lab, steps())
    assert lab.removed == ["dataplane", "mesh", "node"]
    assert not lab.exists


def test_undo_tries_all_and_then_raises_the_first_error():
    lab = up(FakeLab())
    lab.dataplane.refuses = LabError("a link will not go")
    lab.mesh.refuses = LabError("a pod will not end")
    with pytest.raises(LabError, match="a link will not go"):
        undo(lab, steps())
    assert lab.removed == ["node"]


def test_undo_of_nothing_is_fine():
    lab = FakeLab()
    undo(lab, steps())
    assert lab.removed == []
