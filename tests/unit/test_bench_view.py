"""What a benchmark shows in the terminal and to scripts, compared with golden files and its schema."""

import dataclasses
import json
import math
import re

import pytest

import golden_files
from bench_results import result
from merbridge_lab.bench import wording
from merbridge_lab.bench.bench_json import to_json
from merbridge_lab.bench.model import NOISE_ROW
from merbridge_lab.bench.statistics import Claim, Interval, summarize
from merbridge_lab.console import bench_view
from merbridge_lab.console.terminal import Terminal
from merbridge_lab.text import as_json
from schema_files import read


def without(measured, name, why):
    rows = tuple(dataclasses.replace(row, invalid=why) if row.name == name else row for row in measured.rows)
    return dataclasses.replace(measured, rows=rows)


RESULTS = {
    "mixed": result({"latency": 0.8, "parallel": 1.25, "bodies": 0.79}, rounds=12),
    "same": result(rounds=12),
    "noisy": result({"latency": 0.8, NOISE_ROW: 1.2}, outside_load=0.32),
    "few": result({"latency": 0.8}, rounds=3, interrupted=True),
    "invalid": without(result({"parallel": 1.3}), "latency", "12 of 5000 requests bypassed a sidecar"),
    "no noise": dataclasses.replace(result({"latency": 0.5}), rows=result({"latency": 0.5}).rows[:-1]),
    "nothing": dataclasses.replace(result(), rows=(), interrupted=True),
}


@pytest.fixture(scope="module")
def summaries():
    return {name: summarize(each) for name, each in RESULTS.items()}


@pytest.fixture
def shown(monkeypatch, capsys, summaries):
    """Return a function that shows a summary on a page of this width."""
    monkeypatch.setenv("TERM", "dumb")

    def show(name, width, *, verbosity=0):
        monkeypatch.setenv("COLUMNS", str(width))
        bench_view.benchmark(Terminal(verbosity=verbosity, color=False), summaries[name])
        return "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"

    return show


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_page(shown, name, width):
    assert max(map(len, shown(name, width).splitlines())) <= width


@pytest.mark.parametrize("name", ["mixed", "noisy", "few"])
def test_the_page(shown, name):
    golden_files.check(f"bench-{name}-80.txt", shown(name, 80))


def test_the_page_with_more_room_and_all_figures(shown):
    golden_files.check("bench-mixed-120.txt", shown("mixed", 120, verbosity=1))


@pytest.mark.parametrize("name", ["mixed", "noisy", "few"])
def test_with_q_only_what_follows_and_what_makes_it_doubtful(shown, name):
    whole, brief = (" ".join(shown(name, 80, verbosity=level).split()) for level in (0, -1))
    summary = summarize(RESULTS[name])
    assert brief.endswith(wording.conclusion(summary))
    assert brief.count("! ") == whole.count("! ") == len(wording.warnings(summary))
    assert len(shown(name, 200, verbosity=-1).splitlines()) == 1 + len(wording.warnings(summary))


def test_a_terminal_that_has_only_ascii(shown, monkeypatch):
    monkeypatch.setattr(Terminal, "unicode", False)
    told = shown("mixed", 80, verbosity=1)
    assert told.isascii()
    assert re.search(r"latency +\d+ us .* gain +\|=+o", told)


def test_what_makes_it_doubtful_comes_first(shown):
    assert shown("noisy", 80).startswith("! This machine is too noisy: the rules differ from themselves")
    assert shown("no noise", 80).startswith("! The rules were not measured against themselves")
    assert "! latency does not count: 12 of 5000 requests bypassed a sidecar" in shown("invalid", 80)
    assert not shown("mixed", 80).startswith("!")


def test_a_machine_on_which_little_can_be_seen_is_told():
    restless, quiet = (summarize(result(noise=noise, seed=3)) for noise in (0.3, 0.02))
    assert restless.noise.comparison.claim is Claim.NONE
    assert re.match(r"The rules against themselves are \d", wording.warnings(restless)[0])
    assert wording.warnings(quiet) == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mixed", r"eBPF pays off here for latency \(0.[78]\d\) and parallel \(1.2\d\); it is worse than the rules for bodies \(0.\d+\); no difference seen for connect\."),  # noqa: E501
        ("same", "No difference seen between eBPF and the rules for latency, parallel, connect and bodies."),
        ("noisy", "Nothing follows from this run: on this machine the same measurement differs from itself."),
        ("few", "Nothing follows from this run: too little was measured."),
        ("no noise", "Nothing follows from this run: too little was measured."),
        ("nothing", "Nothing follows from this run: too little was measured."),
    ],
)  # fmt: skip
def test_what_follows(summaries, name, sentence):
    assert re.fullmatch(sentence, wording.conclusion(summaries[name]))


@pytest.mark.parametrize(
    ("value", "unit", "told"),
    [
        (0.000_512_4, "s", "512 µs"),
        (0.001_915, "s", "1.92 ms"),
        (0.0, "s", "0.00 µs"),
        (1.5, "s", "1.50 s"),
        (14312.4, "requests/s", "14,312/s"),
        (8.125, "requests/s", "8.12/s"),
        (1_234_000_000.0, "bytes/s", "1.23 GB/s"),
        (17_000_000, "bytes", "17.0 MB"),
        (999, "bytes", "999 B"),
        (940e6, "bits/s", "940 Mbit/s"),
        (12.0, "parsecs", "12.0 parsecs"),
        (None, "s", wording.UNKNOWN),
        (math.nan, "s", wording.UNKNOWN),
    ],
)
def test_figures_are_told_with_their_units(value, unit, told):
    assert wording.figure(value, unit) == told


def test_no_figure_is_rounded_to_look_better():
    assert wording.interval(Interval(0.8511, 0.9689)) == "0.85\N{EN DASH}0.97"
    assert wording.interval(Interval(1.0299, 1.0301)) == "1.02\N{EN DASH}1.04"
    assert (wording.ratio(0.9951), wording.ratio(0.9949)) == ("1.00", "0.99")
    assert wording.ratio(0.0042) == "0.0042"


# -- JSON


@pytest.mark.parametrize("name", RESULTS)
def test_json_is_what_the_schema_says(summaries, name):
    told = read("bench", as_json(to_json(summaries[name], lab="embedded")))
    assert [row["name"] for row in told["rows"]] == [row.name for row in RESULTS[name].rows]


def test_json_has_what_was_measured(summaries):
    told = to_json(summaries["mixed"], lab="embedded")
    latency, noise = told["rows"][0], told["rows"][-1]
    assert (told["verdict"], latency["verdict"], noise["verdict"]) == ("loss", "gain", "~")
    assert latency["low"] < latency["ratio"] < latency["high"] < 1
    assert latency["corrected"]["low"] < latency["low"]
    assert len(latency["pairs"]) == 12
    assert latency["ways"]["rules"]["percentiles"]["p99.9"] is None
    assert set(latency["beside"]) == {"cpu", "p90", "p99"}


def test_json_has_no_number_that_json_lacks():
    measured = result()
    broken = dataclasses.replace(measured.rows[0].samples[0], value=math.nan)
    row = dataclasses.replace(measured.rows[0], samples=(broken, *measured.rows[0].samples[1:]))
    told = to_json(summarize(dataclasses.replace(measured, rows=(row, *measured.rows[1:]))), lab="embedded")
    json.dumps(told, allow_nan=False)
    assert told["rows"][0]["verdict"] is None
    assert told["rows"][0]["pairs"][0]["candidate"] is None
