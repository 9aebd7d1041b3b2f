"""The walkthrough in a lab without a dataplane: what is skipped, what shows that the rules work, what is no proof."""

import pytest

from fake_lab import FakeLab
from merbridge_lab.evidence import Verdict
from merbridge_lab.loader import steps
from merbridge_lab.report import Report
from merbridge_lab.runner import Runner

STEPS = steps()


@pytest.fixture
def lab():
    bare = FakeLab()
    bare.capabilities = frozenset()
    return bare


@pytest.fixture
def up(lab):
    for part in (lab.node, lab.mesh):
        part.ensure()
    return lab


def run(lab, *numbers):
    return Runner(lab, patience=0.1).run(Report("up", lab.name), [STEPS[number] for number in numbers])


def checks(report):
    return [[check.check.name for check in outcome.checks] for outcome in report.steps]


def test_all_ten_pass_but_those_about_the_dataplane_which_are_skipped_with_a_sentence(lab):
    report = run(lab, *range(10))
    assert report.verdict is Verdict.PASS, report.cause
    assert [outcome.verdict.value for outcome in report.steps] == ["pass"] * 3 + ["skip"] * 3 + ["pass"] * 4
    assert report.skipped == 3
    assert all(" " in outcome.reason for outcome in report.steps[3:6])


def test_nothing_but_a_mesh_is_claimed(up):
    claimed = {name for names in checks(run(up, *range(10))) for name in names}
    assert not {name for name in claimed if name.startswith(("redirect.", "trace.", "dataplane."))}
    assert "rules.stood_still" not in claimed


def test_requests_go_by_the_rules(up):
    report = run(up, 6, 8)
    assert checks(report) == [["mesh.served", "mesh.both_sidecars_served", "rules.do_the_work"]] * 2
    reading = next(
        reading
        for check in report.steps[0].checks
        for reading in check.finding.evidence
        if reading.source == "iptables:sleep/nat/ISTIO_REDIRECT"
    )
    assert reading.moved == 4


def test_a_flush_closes_them_and_is_undone(up):
    before = up.workload("sleep").rules.snapshot().specs("nat")
    (outcome,) = run(up, 9).steps
    assert outcome.verdict is Verdict.PASS
    assert [check.check.name for check in outcome.checks] == [
        "rules.were_absent",
        "rules.flushed_is_closed",
        "rules.restored",
        "rules.were_untouched",
    ]
    control = outcome.checks[1].finding.control
    assert (control.name, control.verdict) == ("rules.move_when_present", Verdict.PASS)
    assert up.workload("sleep").rules.snapshot().specs("nat") == before


def test_a_kept_flush_is_counted_as_a_skip(up):
    up.keep = True
    up.pods[0].rules._keep = True
    report = run(up, 9)
    assert (report.verdict, report.skipped) == (Verdict.PASS, 1)
    assert up.restore() == ["sleep"]


def test_a_request_that_is_served_while_flushed_is_a_failure(up):
    """Without STRICT a 200 comes back past both sidecars; the walkthrough would take it for a proof."""
    for server in up.servers():
        server.rules.flush()
    report = run(up, 9)
    assert report.verdict is Verdict.FAIL
    assert "not closed" in report.cause or "control did not hold" in report.cause


def test_a_request_that_fails_anyway_is_not_taken_for_what_a_flush_does(up):
    up.workload("sleep").sidecar = False
    report = run(up, 9)
    assert report.verdict is Verdict.FAIL
    assert "control did not hold" in report.cause


def test_rules_that_something_else_brings_back_are_noticed(up):
    sleep = up.workload("sleep")
    flush = sleep.rules.flush
    sleep.rules.flush = lambda: (flush(), setattr(sleep.rules, "text", sleep.rules.saved))
    assert run(up, 9).verdict is Verdict.FAIL


def test_the_narration_is_of_what_is_there():
    bare, full = STEPS[9].on(frozenset()), STEPS[9].on({"dataplane", "twin"})
    assert "no eBPF is in place" in bare.narration
    assert full is STEPS[9]
    assert bare.title == full.title


def test_there_is_nothing_to_verify(up):
    report = Runner(up).prove(Report("verify", up.name), standing=STEPS[1:3], steps=STEPS[8:10])
    assert report.verdict is Verdict.ERROR
    assert "dataplane" in report.error.what
    assert report.to_json()["verdict"] == "error"
