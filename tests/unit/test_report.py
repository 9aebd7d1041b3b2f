"""The record of a run, and its JSON as cli.md promises it."""

import json
from dataclasses import replace

import pytest

from fake_lab import CAPTURED, FakeLab, up
from merbridge_lab import exit_codes
from merbridge_lab.dial_results import Dial, Leg
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Control, Reading, Verdict, fails, holds, skips
from merbridge_lab.lab import CONTROL_CLIENT, DIALS, TRACE
from merbridge_lab.loader import steps
from merbridge_lab.model import Check, Kind, Step
from merbridge_lab.report import CheckOutcome, Report, StepOutcome
from merbridge_lab.runner import Runner
from schema_files import complaints, read

CLAIM = Check("some.claim", "a claim", lambda finding: finding, hint="merlab status")


def done(lab, which=None, patience=0.05):
    report = Runner(lab, patience=patience).run(Report("up", lab.name), steps() if which is None else which)
    return report, read("run", json.dumps(report.to_json()))


def outcome(number, verdict, *findings, reason=None):
    step = Step(number, Kind.DEMONSTRATE, lambda _lab: None, (), lambda _lab: [], title=f"step {number}")
    checks = tuple(CheckOutcome(CLAIM, finding, 1, 0.0) for finding in findings)
    return StepOutcome(step, verdict, 0.5, checks, reason=reason)


def test_a_pass():
    report, told = done(FakeLab())
    assert (told["verdict"], told["cause"], told["error"], told["skipped"]) == ("pass", None, None, 0)
    assert [step["number"] for step in told["steps"]] == list(range(10))
    assert exit_codes.of(report.verdict) == 0
    nine = told["steps"][9]
    assert nine["commands"][1] == "nsenter --net=/run/fake/netns/sleep iptables-nft -t nat -F"
    took_over = next(check for check in nine["checks"] if check["name"] == "redirect.ebpf_took_over")
    assert took_over["control"]["name"] == "mesh.closed_without_ebpf"
    assert took_over["control"]["verdict"] == "pass"
    sources = {reading["source"].partition(":")[0] for check in nine["checks"] for reading in check["evidence"]}
    assert {"iptables", "bpf", "envoy", "curl"} <= sources


def test_a_verify_with_its_matrix():
    lab = up(FakeLab())
    report = Runner(lab).prove(Report("verify", "fake"), standing=steps()[1:4], steps=steps()[8:10])
    told = read("run", json.dumps(report.to_json()))
    assert [step["number"] for step in told["steps"]] == [8, 9]
    assert {(cell["ebpf"], cell["rules"]) for cell in told["matrix"]} == {
        (e, r) for e in (True, False) for r in (True, False)
    }
    assert {check["name"] for check in told["standing"]} == {"node.in_order", "mesh.in_order", "dataplane.in_order"}
    without = [cell for cell in told["matrix"] if not cell["ebpf"] and not cell["rules"]]
    assert {(cell["served"], cell["both_sidecars"]) for cell in without} == {(False, False), (True, False)}


class Dialling(FakeLab):
    """Also dials by plain TCP, and by IPv6 if it has that."""

    def __init__(self, unasked):
        super().__init__()
        self.capabilities |= {DIALS}
        self._unasked = unasked

    def dial(self, _client):
        tcp, ipv6 = (self._dialled(how) for how in ("by plain TCP", "by an IPv6 socket"))
        return [replace(ipv6, unasked=self._unasked, served=not self._unasked), tcp]

    @staticmethod
    def _dialled(how):
        there = "10.0.0.1:80"
        return Dial(how, there, "10.0.0.2:4", there, 7, 7, served=True, legs={"outbound": Leg(there, 7, 7)})


@pytest.mark.parametrize("unasked", ["", "this kernel has no IPv6 sockets"])
def test_a_kind_of_connection_that_was_not_asked_is_counted_as_skipped(unasked):
    """What was not read is not a pass: it is named with the reason, and counted."""
    report = Runner(up(Dialling(unasked))).prove(Report("verify", "fake"), standing=steps()[1:4], steps=steps()[8:10])
    told = read("run", json.dumps(report.to_json()))
    said = [f"not asked by an IPv6 socket: {unasked}"] if unasked else []
    assert (told["verdict"], told["skipped"]) == ("pass", len(said))
    assert [each for cell in told["matrix"] for each in cell["unasked"]] == said
    both = next(cell for cell in told["matrix"] if cell["ebpf"] and cell["rules"])
    assert both["verdict"] == "pass"
    assert ("also by plain TCP; skipped, not asked by" in both["why"]) == bool(unasked)


def test_a_failure_has_a_cause():
    lab = FakeLab()
    lab.mesh.incurable = "the sidecar of helloworld-v1 does not answer on port 15021"
    report, told = done(lab)
    assert (told["verdict"], told["cause"], told["error"]) == ("fail", lab.mesh.incurable, None)
    assert told["steps"][-1]["outcome"] == "fail"
    assert told["steps"][-1]["checks"][-1]["reason"] == lab.mesh.incurable
    assert exit_codes.of(report.verdict) == 1


def test_a_failure_without_a_check_has_its_reason_as_cause():
    report = Report("up", "fake", steps=[outcome(0, Verdict.FAIL, reason="the pod came up without rules")])
    assert report.cause == "the pod came up without rules"
    assert complaints("run", report.to_json()) == []


def test_the_cause_is_the_first_thing_that_did_not_hold():
    report = Report(
        "verify",
        "fake",
        steps=[
            outcome(8, Verdict.PASS, holds("well")),
            outcome(9, Verdict.FAIL, holds("well"), skips("not looked at"), fails("this is wrong"), fails("that too")),
        ],
    )
    assert report.cause == "this is wrong"
    assert [check.finding.why for check in report.failed()] == ["this is wrong", "that too"]
    report.standing.append(CheckOutcome(CLAIM, fails("there is no node"), 1, 0.0))
    assert report.cause == "there is no node"


def test_an_error():
    """U6: there is a cause, also for an error."""
    lab = FakeLab()
    report, told = done(lab, steps()[2:3])
    assert (told["verdict"], told["cause"]) == ("error", "mesh cannot be made: there is no node")
    assert told["error"] == {
        "id": "internal",
        "see": "docs/troubleshooting.md#internal",
        "what": "mesh cannot be made: there is no node",
        "hint": None,
        "command": None,
        "stderr": None,
    }
    assert [step["outcome"] for step in told["steps"]] == ["error"]
    assert exit_codes.of(report.verdict) == 3


def test_an_error_outweighs_a_failure():
    report = Report("up", "fake", steps=[outcome(0, Verdict.FAIL, fails("wrong"))], error=LabError("the disk is full"))
    assert report.verdict is Verdict.ERROR
    assert complaints("run", report.to_json()) == []


def test_an_error_of_a_command_carries_command_and_stderr():
    error = LabError(
        "nft failed with exit status 1", "merlab doctor", "nft list tables", "Operation not permitted", id="tool.failed"
    )
    told = Report("up", "fake", error=error).to_json()
    assert complaints("run", told) == []
    assert told["error"] == vars(error) | {"see": "docs/troubleshooting.md#tool.failed"}
    assert told["see"] == told["error"]["see"]


def test_skips_are_counted_and_listed_with_their_reason():
    lab = FakeLab()
    lab.capabilities -= {TRACE, CONTROL_CLIENT}
    report, told = done(lab)
    assert (told["verdict"], told["skipped"]) == ("pass", 4)
    skipped = [step for step in told["steps"] if step["outcome"] == "skip"]
    assert [step["number"] for step in skipped] == [4, 5, 8, 9]
    assert all("told to do without" in step["reason"] for step in skipped)
    assert exit_codes.of(report.verdict) == 0


def test_a_run_of_skips_says_what_is_wrong_with_it():
    lab = FakeLab()
    lab.capabilities = frozenset()
    report, told = done(lab, steps()[4:6])
    assert told["verdict"] == "error"
    assert "every step was skipped" in told["error"]["what"]
    assert exit_codes.of(report.verdict) == 3


def test_a_skipped_check_counts():
    report = Report("step", "fake", steps=[outcome(9, Verdict.PASS, holds("well"), skips("left flushed, as asked"))])
    assert (report.verdict, report.skipped) == (Verdict.PASS, 1)
    assert complaints("run", report.to_json()) == []


def test_a_run_of_nothing_is_no_pass():
    assert Report("up", "fake").verdict is Verdict.ERROR
    assert complaints("run", Report("up", "fake").to_json()) == []


def test_what_changed_under_a_proof_is_a_failure():
    report = Report("verify", "fake", steps=[outcome(9, Verdict.PASS, holds("well"))], changes=["a pod changed"])
    assert (report.verdict, report.cause) == (Verdict.FAIL, "a pod changed")


def test_a_standing_check_that_fails_leaves_no_pass():
    report = Report("verify", "fake", steps=[outcome(9, Verdict.PASS, holds("well"))])
    report.standing.append(CheckOutcome(CLAIM, fails("there is no node"), 1, 0.0))
    assert report.verdict is Verdict.FAIL


@pytest.mark.parametrize(("verdict", "status"), [("pass", 0), ("fail", 1), ("error", 3), ("skip", 3)])
def test_exit_statuses(verdict, status):
    assert exit_codes.of(Verdict(verdict)) == status


@pytest.mark.parametrize(
    ("before", "after", "moved"), [(3, 7, 4), (7, 3, -4), (None, 7, 0), (3, None, 0), ("a", "b", 0), (0, 0, 0)]
)
def test_a_reading_moves_by_its_numbers(before, after, moved):
    assert Reading("bpf:sleep/connects", "events", before, after).moved == moved


def test_evidence_of_a_control_is_in_the_json():
    control = Control("rules.move_without_ebpf", Verdict.FAIL, (Reading("iptables:twin/nat", "packets", 0, 0),))
    report = Report("step", "fake", steps=[outcome(8, Verdict.FAIL, fails("no control", control=control))])
    told = report.to_json()
    assert complaints("run", told) == []
    assert told["steps"][0]["checks"][0]["control"]["evidence"][0]["source"] == "iptables:twin/nat"


# -- the schemas themselves


def test_the_captured_status_of_a_real_lab_is_what_the_schema_says():
    told = read("status", (CAPTURED / "status.json").read_text())
    assert told["dataplane"]["attached"]


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "fine"},
        {"verdict": "fail"},
        {"verdict": "error"},
        {"cause": "something, although all is well"},
        {"skipped": -1},
        {"schema": 2},
        {"steps": []},
        {"error": {"what": "no hint"}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_cli_md_does_not_promise(change):
    _, told = done(FakeLab())
    assert complaints("run", told | change)


@pytest.mark.parametrize("key", ["schema", "merlab", "command", "lab", "seconds", "verdict", "cause", "steps", "error"])
def test_the_schema_misses_what_is_missing(key):
    _, told = done(FakeLab())
    del told[key]
    assert complaints("run", told)
