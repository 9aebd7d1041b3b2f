"""The checks, and the matrix, over what a dataplane like upstream's leaves: notes in a map, run counts, a trace.

The observations are those of the lab in memory, whose requests leave real log lines and rule counters; the content of
the map and the trace is added.
"""

import contextlib
from dataclasses import replace

import pytest

from fake_lab import FakeLab, seen_with, up
from merbridge_lab import interception, matrix
from merbridge_lab.checks import dataplane, mesh, trace
from merbridge_lab.evidence import Unread, Verdict
from merbridge_lab.interception import LEGS, Counters
from merbridge_lab.lab import APP_REPORTS_PEER, DEBUG_TOGGLE, INBOUND_WITHOUT_RULES
from merbridge_lab.loader import steps
from merbridge_lab.merbridge import evidence
from merbridge_lab.merbridge import trace as upstream
from merbridge_lab.report import Report

VIP = "10.96.0.10:5000"


def as_upstream(seen, legs=LEGS, runs=None, limits=None, held=None, trace=()):
    """Add to an observation what upstream's map, run counts and trace hold of it; `held` nonces are in the map."""
    exchanges = tuple(replace(one, remote="127.128.0.7:5000") for one in seen.exchanges)
    after = {"connect4_runs": 9, "sk_msg_runs": 6 * len(exchanges) if runs is None else runs}
    counters = Counters({"node": dict.fromkeys(after, 0)}, {"node": after})
    known = [one.nonce for one in exchanges] if held is None else held
    changed = replace(seen, exchanges=exchanges, trace=trace)
    destinations = held if isinstance(held, Unread) else {nonce: dict.fromkeys(legs, VIP) for nonce in known}
    return replace(changed, interception=evidence.interception(changed, destinations, counters, limits or {}))


@pytest.fixture
def healthy():
    lab = up(FakeLab())
    return as_upstream(lab.observe(lab.workload("sleep")))


def lines(*said):
    text = "            curl-4242    [001] ...11  4520.123456: bpf_trace_printk: [debug] {}"
    return tuple(upstream.parse(text.format(each)) for each in said)


CONNECT = "call from user container: cookie: 77, ip: 10.96.0.10, port: 5000"
MOVED = "redirect 91 bytes with eBPF successfully"


def test_what_the_map_holds_is_intercepted_and_moved(healthy):
    assert dataplane.assess_intercepted(healthy).held
    moved = dataplane.assess_payload(healthy)
    assert moved.held
    assert "on all three legs" in moved.why
    assert {reading.source for reading in moved.evidence} >= {
        "bpf:pair_original_dst/sleep/mesh",
        "bpf:node/sk_msg_runs",
    }


def test_programs_that_run_and_note_nothing_intercept_nothing(healthy):
    finding = dataplane.assess_intercepted(as_upstream(healthy, held=[]))
    assert not finding.held
    assert "intercepted none of 4 fresh connections of sleep: its program ran 9 times" in finding.why


def test_one_connection_that_is_not_in_the_map_is_one_too_many(healthy):
    held = [one.nonce for one in healthy.exchanges[1:]]
    assert "intercepted 3 of 4" in dataplane.assess_intercepted(as_upstream(healthy, held=held)).why


def test_a_map_that_could_not_be_read_shows_nothing(healthy):
    unread = as_upstream(healthy, held=Unread("somewhere", "nobody could look"))
    for check in (dataplane.intercepted(), dataplane.payload_moved(), trace.tells_the_request()):
        finding = check.evaluate(unread)
        assert finding.verdict is Verdict.FAIL
        assert "somewhere could not be read: nobody could look" in finding.why


def test_a_note_of_a_connection_that_went_elsewhere_proves_nothing(healthy):
    exchanges = tuple(replace(one, remote=VIP) for one in healthy.exchanges)
    finding = dataplane.assess_intercepted(replace(healthy, exchanges=exchanges))
    assert "not to the sidecar" in finding.why


@pytest.mark.parametrize("missing", LEGS)
def test_a_leg_without_notes_is_named_unless_it_is_a_known_limit(healthy, missing):
    legs = [leg for leg in LEGS if leg != missing]
    short = as_upstream(healthy, legs)
    finding = dataplane.assess_payload(short)
    assert f"0 of 4 on the {missing} leg" in finding.why
    limited = dataplane.assess_payload(as_upstream(healthy, legs, limits={missing: "the reason"}))
    assert limited.held
    assert f"not on the {missing} leg: the reason" in limited.why


def test_a_mover_that_did_not_run_for_each_message(healthy):
    assert "ran 23 times for at least 24 messages" in dataplane.assess_payload(as_upstream(healthy, runs=23)).why


def test_where_there_is_a_trace_it_must_tell_of_each_message(healthy):
    full = as_upstream(healthy, trace=lines(CONNECT, *[MOVED] * 24))
    assert "24 messages, 2184 bytes" in dataplane.assess_payload(full).why
    short = as_upstream(healthy, trace=lines(CONNECT, *[MOVED] * 23))
    assert "the trace shows 23 messages moved" in dataplane.assess_payload(short).why
    none = as_upstream(healthy, trace=lines(CONNECT))
    assert "the trace shows 0 messages moved" in dataplane.assess_payload(none).why


def test_without_a_trace_it_is_said_that_messages_were_handed_over_not_that_they_moved(healthy):
    said = dataplane.assess_payload(as_upstream(healthy, trace=())).why
    assert "handed to the program that moves them, on all three legs" in said
    assert "moved from socket to socket" not in said


def test_a_trace_is_of_the_request_if_it_names_where_the_map_says_it_was_meant_to_go(healthy):
    assert trace.assess_told(as_upstream(healthy, trace=lines(CONNECT, MOVED))).held
    elsewhere = lines(CONNECT.replace("10.96.0.10", "10.96.0.99"), MOVED)
    assert "no connect() to it was intercepted" in trace.assess_told(as_upstream(healthy, trace=elsewhere)).why
    assert "no bytes were moved" in trace.assess_told(as_upstream(healthy, trace=lines(CONNECT))).why


def test_a_trace_that_looks_right_without_a_note_in_the_map_proves_nothing(healthy):
    finding = trace.assess_told(as_upstream(healthy, held=[], trace=lines(CONNECT, MOVED)))
    assert not finding.held
    assert "this request was not intercepted" in finding.why


def test_a_flushed_request_that_its_sidecar_never_saw_is_said_to_have_been_sent_nowhere():
    lab = up(FakeLab())
    lab.dataplane.remove()
    sleep = lab.workload("sleep")
    with sleep.rules.flushed() as saved:
        seen = lab.observe(sleep)
    finding = mesh.assess_served(seen.with_rules(saved, sleep.rules.snapshot()))
    assert "its own sidecar has no record of it: with the rules flushed, nothing sent it there" in finding.why


# -- the matrix


class Without(FakeLab):
    """A lab whose dataplane leaves the servers' side to the rules, and whose apps do not report their peer."""

    def __init__(self, *missing):
        super().__init__()
        self.capabilities -= set(missing)
        self.bypassing = False

    @contextlib.contextmanager
    def flushed(self, workloads):
        with super().flushed(workloads) as saved:
            self.bypassing = True
            yield saved
            self.bypassing = False

    def observe(self, client, **options):
        seen = super().observe(client, **options)
        return replace(seen, server_log={}) if self.bypassing else seen


def last_cell(lab):
    return sorted(matrix.measure(up(lab)), key=lambda outcome: outcome.cell.place)[2]


def test_what_upstream_is_known_not_to_serve_is_told_apart_from_a_broken_lab():
    outcome = last_cell(Without(INBOUND_WITHOUT_RULES))
    assert outcome.finding.verdict is Verdict.SKIP
    assert outcome.finding.why.startswith("a known limit, not a broken lab:")
    assert "4 of 4 answered, 0 of 4 through a server's sidecar" in outcome.finding.why
    report = Report("verify", "fake", matrix=[outcome])
    assert report.skipped == 1
    assert report.cause == "nothing was seen to hold: every step was skipped"
    assert outcome.to_json()["verdict"] == "skip"


def test_a_client_that_is_not_intercepted_is_no_limit_of_the_servers_side():
    class Idle(Without):
        def observe(self, client, **options):
            seen = super().observe(client, **options)
            return seen_with(seen, counters_after=seen.interception.counters.before) if self.bypassing else seen

    finding = last_cell(Idle(INBOUND_WITHOUT_RULES)).finding
    assert finding.verdict is Verdict.FAIL
    assert "intercepted 0 of 4" in finding.why


def test_the_same_where_it_should_serve_them_is_a_failure():
    outcome = last_cell(Without())
    assert outcome.finding.verdict is Verdict.FAIL


def test_where_it_serves_them_all_the_same_it_is_no_limit():
    lab = FakeLab()
    lab.capabilities -= {INBOUND_WITHOUT_RULES}
    assert last_cell(lab).finding.held


def test_rules_that_were_not_gone_are_never_a_known_limit():
    class Kept(Without):
        def flushed(self, workloads):
            return contextlib.nullcontext({one.name: one.rules.snapshot() for one in workloads})

    finding = last_cell(Kept(INBOUND_WITHOUT_RULES)).finding
    assert finding.verdict is Verdict.FAIL
    assert "although it had been flushed" in finding.why


@pytest.mark.parametrize(
    ("headers", "held"),
    [({}, True), ({"server": "istio-envoy"}, False), ({"x-envoy-upstream-service-time": "3"}, False)],
)
def test_an_app_that_does_not_tell_who_asked_must_have_answered_without_a_sidecars_headers(headers, held):
    class Silent(FakeLab):
        def observe(self, client, **options):
            seen = super().observe(client, **options)
            if options.get("logged", True):
                return seen
            return replace(seen, exchanges=tuple(replace(one, headers=headers) for one in seen.exchanges))

    lab = Silent()
    lab.capabilities -= {APP_REPORTS_PEER}
    bypassed = sorted(matrix.measure(up(lab)), key=lambda outcome: outcome.cell.place)[5]
    assert bypassed.finding.held is held, bypassed.finding.why


# -- steps in a lab whose dataplane restarts for its debug flag


def test_step_4_tells_that_the_pod_is_made_anew_and_shows_what_became_of_it():
    step = steps()[4].on(FakeLab().capabilities - {DEBUG_TOGGLE})
    assert "the pod is recreated" in " ".join(step.narration.split())
    assert step.needs == steps()[4].needs
    assert "the pod is recreated" not in " ".join(steps()[4].narration.split())
    lab = up(FakeLab())
    lab.dataplane.debug_shown = lambda: "args: [-d]"
    step.act(lab)
    assert [shown.output for shown in lab.shown()][-1] == "args: [-d]"


# -- what no dataplane can claim


def test_a_witness_that_leaves_a_direction_out_proves_nothing(healthy):
    record = healthy.interception
    (witness,) = record.moved
    partial = replace(witness, flows=(replace(witness.flows[0], directions=5),))
    finding = dataplane.assess_payload(replace(healthy, interception=replace(record, moved=(partial,))))
    assert not finding.held
    assert "tell of 5 of 6 directions" in finding.why


def test_where_nothing_intercepts_nothing_is_moved_or_traced(healthy):
    seen = replace(healthy, interception=interception.nothing("sleep"))
    for check in (dataplane.intercepted(), dataplane.payload_moved(), trace.tells_the_request()):
        assert check.evaluate(seen).verdict is Verdict.FAIL
