"""`make bench`: the table of what is aimed at, from what `merlab bench --json` prints."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.bench_results import result

from merbridge_lab.bench import measuring, scenarios
from merbridge_lab.bench.bench_json import to_json
from merbridge_lab.bench.statistics import summarize

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_targets", ROOT / "scripts/bench_targets.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where its data classes look for their names
    spec.loader.exec_module(module)
    return module


def told(**ratios):
    return to_json(summarize(result(ratios, rounds=12, noise=0.001)), lab="embedded")


@pytest.mark.parametrize(
    ("row", "measured", "expected"),
    [
        ("latency", 0.7, "reached"),
        ("latency", 0.88, "10% short"),
        ("bodies", 1.7, "reached"),
        ("bodies", 1.32, "20% short"),
    ],
)
def test_an_aim_is_reached_or_short_by_a_share_of_it(script, row, measured, expected):
    aim = next(aim for aim in script.AIMS if aim.row == row and aim.beside is None)
    seen = aim.verdict(told(**{row: measured}))
    assert seen == expected or abs(int(seen.split("%")[0]) - int(expected.split("%")[0])) <= 1


def test_each_aim_is_a_row_of_the_table_with_both_profiles(script, monkeypatch):
    rows = {"latency", "parallel", "connect", "bodies"}
    monkeypatch.setattr(script, "AIMS", [aim for aim in script.AIMS if aim.row in rows])
    lines = script.table(told(bodies=1.7), told(bodies=1.2)).splitlines()
    bodies = next(line for line in lines if line.startswith("| 1 MB bodies")).split(" | ")
    assert bodies[-2] == "reached"
    assert (bodies[4][:3], bodies[-1][:3]) == ("1.7", "1.2")
    limit, rules = (float(bodies[at].removesuffix("/s").replace(",", "")) for at in (1, 2))
    assert limit == pytest.approx(1.4 * 812, rel=0.01)
    assert rules == pytest.approx(812, rel=0.4)
    assert sum(line.startswith("| ") for line in lines) == len(script.AIMS) + 1


def test_of_few_rounds_there_is_a_ratio_without_an_interval(script):
    few = to_json(summarize(result(rounds=1, noise=0.001)), lab="embedded")
    assert script.NOISE.found(few).endswith(" (\N{EN DASH})")


def test_a_row_that_does_not_count_says_why(script):
    seen = told()
    row = next(row for row in seen["rows"] if row["name"] == "connect")
    row |= {"ratio": None, "low": None, "high": None, "invalid": "round 2, by eBPF: requests failed"}
    aim = next(aim for aim in script.AIMS if aim.row == "connect")
    assert (aim.verdict(seen), aim.found(seen)) == ("not measured", "round 2, by eBPF: requests failed")


def test_the_document_has_its_place(script):
    text = script.DOCUMENT.read_text()
    assert text.index(script.BEGIN) < text.index(script.END)


def test_it_measures_samples_that_are_long_enough_for_the_p99_beside_a_median(script, monkeypatch):
    """A figure that is asked for must be measured: in `make bench`, that of `latency` needs 1000 requests a sample."""
    asked = []

    def run(words, **_options):
        asked.extend(words)
        return subprocess.CompletedProcess(words, 0, json.dumps(told()))

    monkeypatch.setattr(script.subprocess, "run", run)
    assert script.measured("all", 12)["rows"]
    assert "--full" in asked
    assert measuring.FULL.seconds(scenarios.SCENARIOS[0]) >= 2
    p99 = next(aim for aim in script.AIMS if aim.beside == "p99")
    assert p99.found(told())[:2] == "1."
    assert p99.found(to_json(summarize(result(requests=900)), lab="embedded")) == "too few requests in a sample"
