"""What the load generators print is read rightly: real outputs of wrk 4.1.0, h2load 1.52.0 and iperf3 3.12."""

from __future__ import annotations

from pathlib import Path

import pytest

from merbridge_lab.bench import generators, scenarios
from merbridge_lab.bench.scenarios import Figure, Load
from merbridge_lab.bench.statistics import requests_needed
from merbridge_lab.errors import LabError, UsageError

CAPTURED = Path(__file__).parents[1] / "captured" / "bench"
PLACE = generators.Place("10.244.0.211", 5000, 9000, 9001, "/run/report.lua", "/run/unread.py", "/run/h2load.log")
BY_NAME = {each.name: each for each in scenarios.SCENARIOS}


def loaded(name, file=None):
    return generators.parse(BY_NAME[name], (CAPTURED / f"{file or name}.txt").read_text())


def test_wrk_tells_requests_and_percentiles_in_seconds():
    told = loaded("latency")
    assert (told.requests, told.failed, told.connections) == (141, 0, 1)
    assert told.seconds == pytest.approx(0.506652)
    assert told.times == pytest.approx({"p50": 0.002757, "p90": 0.011785, "p99": 0.019269, "p99.9": 0.020029})
    assert told.value(Figure.P50) == pytest.approx(0.002757)
    assert told.value(Figure.RATE) == pytest.approx(141 / 0.506652)


def test_a_new_connection_for_each_request_is_measured_from_answer_to_answer():
    told = loaded("connect")
    assert told.connections == told.requests == 114
    # wrk's own latency has its mean in "Latency 4.80ms"; its rate of 221/s says that a cycle takes as long as ours.
    assert told.value(Figure.P50) == pytest.approx(0.003017488)
    assert 0.003 < 1 / told.value(Figure.RATE) < 0.006


def test_answers_of_another_status_are_failures():
    told = loaded("latency", "status-404")
    assert told.failed == told.requests == 98


@pytest.mark.parametrize(("name", "moved"), [("up", 139575296), ("down", 156483584)])
def test_iperf3_tells_what_the_receiver_got(name, moved):
    told = loaded(name)
    assert (told.moved, told.requests) == (moved, 0)
    assert told.value(Figure.BYTES) == pytest.approx(moved / told.seconds)


def test_a_receiver_that_does_not_read_is_told_by_what_it_let_in():
    assert loaded("unread").value(Figure.TAKEN) == 13762560


def test_h2load_tells_percentiles_from_its_log():
    text = (CAPTURED / "open.txt").read_text()
    told = loaded("open")
    rows = [line.split("\t") for line in text.splitlines() if "\t" in line and line[0].isdigit()]
    assert told.requests == len(rows)
    assert told.failed == 0
    assert told.times["p50"] <= told.times["p99"] <= told.times["p99.9"]
    assert told.value(Figure.P99) >= sorted(int(row[2]) for row in rows)[int(len(rows) * 0.98)] / 1e6


def test_in_an_open_loop_a_stall_counts_for_all_requests_that_were_due_meanwhile():
    head = "finished in 1.00s, 100.00 req/s, 1KB/s\n"
    head += "requests: 100 total, 100 started, 100 done, 100 succeeded, 0 failed, 0 errored, 0 timeout\n"
    quick = [f"{micros}\t200\t1000" for micros in range(99)]
    stalled = generators.parse(BY_NAME["open"], head + "\n".join([*quick, "99\t200\t800000"]) + "\n")
    assert stalled.requests == 100
    # One answer in a hundred took 0.8 s: 200 requests were due meanwhile at 250 a second, and waited 0.4 s on average.
    assert stalled.times["p50"] == pytest.approx(0.2, abs=0.01)
    assert stalled.times["p90"] == pytest.approx(0.68, abs=0.01)


@pytest.mark.parametrize(("seconds", "whole"), [(0.4, "2"), (1.0, "2"), (2.4, "3")])
def test_the_open_loop_sends_more_requests_than_its_percentile_needs(seconds, whole):
    words = generators.argv(BY_NAME["open"], PLACE, seconds)
    assert words[words.index("-D") + 1] == whole
    rate, clients = int(words[words.index("--rps") + 1]), int(words[words.index("-c", 3) + 1])
    assert int(whole) * rate * clients >= 2 * requests_needed("p99")


def test_h2load_counts_what_failed():
    text = (CAPTURED / "open.txt").read_text()
    bad = generators.parse(BY_NAME["open"], text.replace("\t200\t", "\t503\t", 3))
    assert bad.failed == 3


@pytest.mark.parametrize(
    "text", ["", "{}", "unable to connect to 10.0.0.1:5000 Connection refused\n", '{"error": "x"}']
)
@pytest.mark.parametrize("name", scenarios.NAMES)
def test_what_is_not_a_report_is_an_error(name, text):
    with pytest.raises(LabError, match="reports nothing that merlab understands"):
        generators.parse(BY_NAME[name], text)


def test_percentiles_are_by_nearest_rank():
    assert [generators.percentile([1, 2, 3, 4], percent) for percent in (25, 50, 75, 99, 99.9)] == [1, 2, 3, 4, 4]


@pytest.mark.parametrize("scenario", scenarios.SCENARIOS, ids=scenarios.NAMES)
def test_each_row_has_a_load_with_the_server_in_it(scenario):
    argv = generators.argv(scenario, PLACE, 0.4)
    assert any(PLACE.address in word for word in argv)
    if scenario.load in (Load.WRK, Load.WRK_CONNECT, Load.WRK_BESIDE):
        assert argv[:2] == ["timeout", "--preserve-status"]
        assert "0.4" in argv


def test_rows_are_chosen_by_name_in_the_order_of_the_table():
    assert [each.name for each in scenarios.chosen("bodies, latency")] == ["latency", "bodies"]
    for wrong in ("latency,speed", "", ","):
        with pytest.raises(UsageError, match="there are latency, parallel"):
            scenarios.chosen(wrong)


def test_a_missing_generator_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setattr(generators.system_tools, "find", lambda name: None if name != "wrk" else "/usr/bin/wrk")
    with pytest.raises(LabError) as caught:
        generators.versions(scenarios.SCENARIOS)
    assert caught.value.what == "merlab bench needs a load generator: iperf3 and h2load are not on this machine"
    assert "iperf3" in caught.value.hint
    assert "h2load" not in caught.value.hint or "nghttp2" in caught.value.hint
