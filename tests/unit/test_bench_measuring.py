"""The rounds of a benchmark over pods in memory, and what makes a row not count."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from fake_bench import NOTHING, Pods, Sets
from merbridge_lab.bench import scenarios, validity
from merbridge_lab.bench.generators import Loaded
from merbridge_lab.bench.measuring import QUICK, Extent, Measurement, Plan
from merbridge_lab.bench.model import NOISE_ROW, Way
from merbridge_lab.bench.pod_sets import Readings, SidecarCounts
from merbridge_lab.errors import LabError


def measured(sets, names="latency", rounds=2, *, direct=False, extent=QUICK):
    plan = Plan(scenarios.chosen(names), extent, rounds, direct)
    told = []
    measurement = Measurement(sets, plan, began=time.monotonic(), tell=told.append)
    measurement.run()
    return measurement.result({"merlab": "x"}), measurement, told


def test_the_sets_swap_their_ways_and_the_order_changes():
    result, _, told = measured(Sets(), rounds=4)
    row, noise = result.rows
    assert [(s.round, s.slot, s.way) for s in row.samples] == [
        (1, "B", Way.RULES),
        (1, "A", Way.EBPF),
        (2, "A", Way.RULES),
        (2, "B", Way.EBPF),
        (3, "A", Way.EBPF),
        (3, "B", Way.RULES),
        (4, "B", Way.EBPF),
        (4, "A", Way.RULES),
    ]
    assert noise.name == NOISE_ROW
    assert [(s.round, s.slot, s.way) for s in noise.samples][:4] == [
        (1, "A", Way.RULES),
        (1, "B", Way.RULES),
        (2, "A", Way.RULES),
        (2, "B", Way.RULES),
    ]
    assert row.invalid is None
    assert noise.invalid is None
    assert result.rounds == 4
    assert not result.interrupted
    assert result.machine == {"lab": "memory", "merlab": "x"}
    assert all(s.value == pytest.approx(0.002757) and s.requests == 141 for s in row.samples)
    assert all(s.cpu_seconds == 0.25 for s in row.samples)
    assert set(row.samples[0].extra) == {"p90", "p99", "p99.9"}
    assert told[0] == "round 1: rules-rules, by the rules"
    assert " s left: " in told[-1]


def test_each_sample_is_preceded_by_one_that_does_not_count():
    sets = Sets()
    measured(sets, rounds=1)
    assert [argv[4] for argv in sets.sets["A"].ran] == ["0.1", "0.2"] * 2


def test_a_median_has_samples_long_enough_for_the_percentile_beside_it():
    extent = Extent(30, 0.2, 0.1, of_median=0.6)
    assert [extent.seconds(row) for row in scenarios.chosen("latency,parallel,connect,mixed")] == [0.6, 0.2, 0.6, 0.8]
    assert QUICK.seconds(scenarios.SCENARIOS[0]) == 0.2
    sets = Sets()
    measured(sets, "latency,parallel", rounds=1, extent=extent)
    assert [argv[4] for argv in sets.sets["A"].ran if "16" not in argv] == ["0.1", "0.6"] * 2
    assert [argv[4] for argv in sets.sets["A"].ran if "16" in argv] == ["0.1", "0.2"]


def test_without_rounds_as_many_as_fit_a_multiple_of_four():
    assert measured(Sets(), rounds=None, extent=Extent(0.0, 0.4, 0.1))[0].rounds == 4
    result = measured(Sets(), rounds=None, extent=Extent(2.5, 0.4, 0.1))[0]
    assert result.rounds > 4
    assert result.rounds % 4 == 0
    firsts = [one for one, other in zip(result.rows[0].samples[::2], result.rows[0].samples[1::2], strict=True)]
    each = [(sample.way, sample.slot) for sample in firsts]
    assert {each.count(one) for one in each} == {result.rounds / 4}
    assert len(set(each)) == 4


def test_an_interrupt_keeps_what_was_measured():
    result, measurement, _ = measured(Sets(stop_after=12))
    assert result.interrupted
    assert measurement.signum == 2
    assert result.rounds == 1
    assert [len(row.samples) for row in result.rows] == [2, 2]


def test_of_a_round_that_was_cut_short_nothing_is_kept():
    whole = len(measured(Sets(), rounds=1)[0].rows[0].samples)
    for stop in range(9, 16):  # warm-ups included, a round has eight loads
        result, *_ = measured(Sets(stop_after=stop), rounds=2)
        assert result.rounds == 1
        assert {sample.round for row in result.rows for sample in row.samples} == {1}
        assert len(result.rows[0].samples) == whole


def test_a_transfer_runs_beside_small_requests_and_ends_before_the_next_load():
    sets = Sets()
    mixed, noise = measured(sets, "mixed", rounds=2)[0].rows
    assert (mixed.invalid, noise.invalid) == (None, None)
    assert all(sample.cpu_seconds is None for sample in mixed.samples)
    assert any(any(word.endswith("/bulk") for word in argv) for argv in sets.sets["A"].ran)
    assert (sets.sets["A"].loads, sets.sets["B"].loads) == (0, 0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (('"bytes": ', '"bytes": 0, "was": '), "the transfer in the background moved nothing"),
        (('"timeout": 0', '"timeout": 3'), "3 requests of the transfer in the background failed"),
        (None, "the generator cannot be ended in time: the machine is too busy"),
    ],
)
def test_a_transfer_that_was_none_makes_the_row_invalid(change, why):
    sets = Sets()
    for pods in sets.sets.values():
        assert change is None or change[0] in pods.beside
        pods.beside = pods.beside.replace(*change) if change else ""
    mixed, noise = measured(sets, "mixed", rounds=1)[0].rows
    assert mixed.invalid == noise.invalid == f"round 1, by the rules: {why}"
    assert (sets.sets["A"].loads, sets.sets["B"].loads) == (0, 0)


def test_a_transfer_ends_also_if_the_load_beside_it_fails(monkeypatch):
    def run(pods, argv, timeout):
        if pods.loads:
            raise LabError("wrk failed with exit status 1")
        return plain(pods, argv, timeout)

    plain = Pods.run
    monkeypatch.setattr(Pods, "run", run)
    sets = Sets()
    assert "wrk failed" in measured(sets, "mixed", rounds=1)[0].rows[0].invalid
    assert (sets.sets["A"].loads, sets.sets["B"].loads) == (0, 0)


def test_a_request_that_bypassed_a_sidecar_makes_the_row_invalid_and_ends_it():
    sets = Sets()
    sets.sets["B"].skips = "server"
    result, *_ = measured(sets, rounds=2)
    row, noise = result.rows
    assert row.invalid == "round 1, by the rules: the server's sidecar saw 0 of 141 requests"
    assert noise.invalid == "round 1, by the rules: the server's sidecar saw 0 of 141 requests"
    assert row.samples == ()


def test_without_sidecars_no_sidecar_may_take_part():
    sets = Sets(direct=True)
    result, *_ = measured(sets, rounds=1, direct=True)
    assert [s.way for s in result.rows[0].samples] == [Way.RULES, Way.EBPF, Way.DIRECT]


def test_a_generator_that_fails_makes_its_row_invalid_and_no_other(monkeypatch):
    def run(pods, argv, timeout):
        if "16" in argv:
            raise LabError("wrk failed with exit status 1")
        return plain(pods, argv, timeout)

    plain = Pods.run
    monkeypatch.setattr(Pods, "run", run)
    latency, parallel, _ = measured(Sets(), "latency,parallel", rounds=1)[0].rows
    assert latency.invalid is None
    assert parallel.invalid == "round 1, by the rules: wrk failed with exit status 1"


@pytest.mark.parametrize("early", ["", "late"])
def test_a_generator_that_missed_its_end_is_asked_again_and_not_for_ever(monkeypatch, early):
    def run(pods, argv, timeout):
        text = plain(pods, argv, timeout)
        bad = text.replace('"duration": 506652', '"duration": 2001000') if early else ""
        pods.early = getattr(pods, "early", 0) + 1
        return bad if pods.early in wrong else text

    plain = Pods.run
    monkeypatch.setattr(Pods, "run", run)
    wrong = {2}  # the first one is the warm-up
    row, noise = measured(Sets(), rounds=1)[0].rows
    assert (row.invalid, noise.invalid, len(row.samples)) == (None, None, 2)
    wrong = range(1000)
    row, noise = measured(Sets(), rounds=1)[0].rows
    assert row.invalid == noise.invalid
    assert row.invalid == "round 1, by the rules: the generator cannot be ended in time: the machine is too busy"


LOADED = Loaded(100, 0, 1000, 0.4, 16)
BEFORE = Readings(0, NOTHING, NOTHING, 5, {})
SERVED = SidecarCounts(100, 100, 0)
RULES = Readings(1, SERVED, SERVED, 21, {})
EBPF = Readings(1, SERVED, SERVED, 5, {"outbound_connects": 16, "mesh_redirected_messages": 200})


@pytest.mark.parametrize(
    ("way", "loaded", "after", "why"),
    [
        (Way.RULES, LOADED, RULES, ""),
        (Way.EBPF, LOADED, EBPF, ""),
        (Way.RULES, replace(LOADED, failed=2), RULES, "2 of 102 requests failed"),
        (Way.RULES, replace(LOADED, requests=0, moved=0), RULES, "nothing was answered"),
        (Way.RULES, LOADED, replace(RULES, redirected=20), "the rules redirected 15 of 16 connections"),
        (Way.RULES, LOADED, replace(RULES, ebpf=EBPF.ebpf), "eBPF serves the pod that should go by the rules"),
        (Way.RULES, LOADED, replace(RULES, client=None), "the client has no sidecar"),
        (
            Way.RULES,
            LOADED,
            replace(RULES, client=replace(SERVED, answered=99)),
            "the client's sidecar saw 99 answers of status 200 to 100 requests",
        ),
        (
            Way.EBPF,
            LOADED,
            replace(EBPF, redirected=6),
            "the rules redirected 1 connections of a pod that eBPF serves",
        ),
        (
            Way.EBPF,
            LOADED,
            replace(EBPF, ebpf={"outbound_connects": 15, "mesh_redirected_messages": 1}),
            "eBPF intercepted 15 of 16 connections",
        ),
        (
            Way.EBPF,
            LOADED,
            replace(EBPF, ebpf={"outbound_connects": 16, "mesh_redirected_messages": 88, "mesh_tcp_messages": 12}),
            "eBPF moved 88 messages of 100 requests between the sidecars; 12 went by TCP",
        ),
        (
            Way.EBPF,
            LOADED,
            replace(EBPF, ebpf={"outbound_connects": 16, "mesh_redirected_messages": 89, "mesh_tcp_messages": 11}),
            "",
        ),
        (
            Way.EBPF,
            replace(LOADED, requests=1),
            replace(EBPF, ebpf={"outbound_connects": 16, "mesh_tcp_messages": 1}),
            "eBPF moved no message between the sidecars",
        ),
        (
            Way.RULES,
            Loaded(0, 0, 1000, 1.0, 2),
            replace(RULES, server=SidecarCounts(0, 0, 1)),
            "the client's sidecar saw 0 of 2 connections",
        ),
    ],
)
def test_what_makes_a_sample_not_count(way, loaded, after, why):
    assert validity.why_invalid(way, loaded, BEFORE, after) == why


def test_what_went_without_sidecars_must_not_move_theirs():
    assert validity.why_invalid(Way.DIRECT, LOADED, BEFORE, BEFORE) == ""
    assert validity.bypassed([(BEFORE, BEFORE)]) == ""
    assert "took part" in validity.bypassed([(BEFORE, RULES)])
