"""What a benchmark may claim: intervals against other implementations, and how often equal ways claim anything."""

import dataclasses
import itertools
import json
import math
import statistics
from pathlib import Path

import pytest

from bench_results import result
from merbridge_lab.bench.bootstrap import bootstrap
from merbridge_lab.bench.model import NOISE_ROW, RowResult, Sample, Way
from merbridge_lab.bench.statistics import (
    CPU,
    FARTHEST,
    LEVEL,
    MARGIN,
    Claim,
    Overall,
    Pair,
    compare,
    requests_needed,
    rounds_needed,
    summarize,
)

RECORDED = json.loads((Path(__file__).parents[1] / "captured/bench/bootstrap-arch.json").read_text())


def claims(summary):
    return {each.row.name: each.comparison.claim for each in summary.rows}


# -- the interval


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: case["name"])
@pytest.mark.parametrize("level", ["0.05", "0.01"])
def test_the_interval_is_that_of_another_implementation(case, level):
    values = case["values"]
    # arch takes the error of the mean from its resamples, which is smaller by this factor.
    mean, wider = statistics.fmean(values), math.sqrt(len(values) / (len(values) - 1))
    low, high = (mean + (end - mean) * wider for end in case["intervals"][level])
    mine = bootstrap(values, [float(level)], resamples=100_000)[0]
    assert mine == pytest.approx((low, high), abs=0.04 * (high - low))


def test_the_interval_is_that_of_all_resamples_there_are():
    values = [0.03, -0.02, 0.11, 0.05, 0.08]
    mean, error = statistics.fmean(values), statistics.stdev(values)
    scores = sorted(
        (statistics.fmean(drawn) - mean) / statistics.stdev(drawn)
        for drawn in itertools.product(values, repeat=len(values))
        if len(set(drawn)) > 1
    )
    low, high = (mean - scores[round(share * (len(scores) - 1))] * error for share in (0.975, 0.025))
    assert bootstrap(values, [0.05])[0] == pytest.approx((low, high), abs=0.03 * (high - low))


def test_a_smaller_level_is_a_wider_interval_about_the_mean():
    (low, high), (lower, higher) = bootstrap([0.1, 0.12, 0.07, 0.3, 0.11, 0.09, 0.1, 0.13], (0.05, 0.01))
    assert lower < low < 0.1275 < high < higher


def test_the_same_samples_are_the_same_summary():
    assert summarize(result({"latency": 0.8})) == summarize(result({"latency": 0.8}))


def test_ratios_that_do_not_differ_are_an_interval_of_one_point():
    found = compare([Pair(n, 3.0, 1.5) for n in range(8)], rows=5, higher_is_better=False)
    assert (found.ratio, found.interval.low, found.interval.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.claim is Claim.GAIN


def seven_and(one, ratio):
    return [Pair(n, 1.0, one if n == 1 else ratio) for n in range(1, 9)]


@pytest.mark.parametrize("tiny", [0.0, 5e-15, 5e-12, 5e-9, 5e-6])
def test_ratios_almost_all_of_which_are_the_same_bound_one_end_alone(tiny):
    """Two resamples in five have the common ratio alone: nothing is known about the end that is on its side."""
    above = compare(seven_and(1.0, 1.1 + tiny), rows=5, higher_is_better=True)
    assert above.claim is Claim.NONE
    assert above.interval.low == pytest.approx(above.ratio / FARTHEST)
    assert above.ratio < above.interval.high < 1.2
    mixed = [1, 1, 1, 1, 1, 1 + tiny, 1.2, 1.3]
    found = compare([Pair(n, 1.0, each) for n, each in enumerate(mixed)], rows=5, higher_is_better=True)
    assert found.claim is Claim.NONE
    assert found.corrected.low < 1 < found.ratio < found.corrected.high <= found.ratio * FARTHEST * 1.001


def test_an_end_that_is_known_may_claim():
    assert compare(seven_and(2.2, 2.0), rows=1, higher_is_better=True).claim is Claim.GAIN


# -- claims


def simulated(ratio, benches, *, rounds, noise):
    """Return how many benches claim anything, and how many a gain in latency, where eBPF is away by `ratio`."""
    anything = found = 0
    for seed in range(benches):
        measured = result({"latency": ratio}, rounds=rounds, noise=noise(seed), seed=seed)
        claimed = set()
        for name, pairs, higher in paired(measured):
            # An interval holds its ratio, so that within the margin there is nothing to claim.
            if abs(math.log(ratio_of(pairs))) > math.log1p(MARGIN):
                told = compare(pairs, rows=len(measured.rows), higher_is_better=higher, resamples=3000)
                claimed |= {(name, told.claim)} if told.claim is not Claim.NONE else set()
        anything += bool(claimed)
        found += ("latency", Claim.GAIN) in claimed
    return anything, found


def ratio_of(pairs):
    return math.exp(statistics.fmean(math.log(each.ratio) for each in pairs))


def paired(measured):
    """Pair by round, in this test's own way: the baseline is in slot A in even rounds."""
    for row in measured.rows:
        pairs = []
        for number in range(1, measured.rounds + 1):
            both = {
                each.slot: each.value for each in row.samples if each.round == number and each.way is not Way.DIRECT
            }
            first, second = ("A", "B") if number % 2 == 0 else ("B", "A")
            pairs.append(Pair(number, both[first], both[second]))
        yield row.name, pairs, row.higher_is_better


def test_of_a_thousand_benches_of_equal_ways_at_most_five_in_a_hundred_claim_anything():
    anything, _ = simulated(1.0, 1000, rounds=8, noise=lambda seed: 0.01 + 0.01 * (seed % 10))
    assert anything <= 50


def test_a_true_gain_of_a_tenth_is_found():
    _, found = simulated(0.9, 60, rounds=12, noise=lambda _: 0.02)
    assert found >= 48


def test_direction_is_that_of_the_row():
    better = summarize(result({"latency": 0.8, "parallel": 1.25}))
    worse = summarize(result({"latency": 1.25, "parallel": 0.8}))
    assert claims(better) == {
        "latency": Claim.GAIN, "parallel": Claim.GAIN, "connect": Claim.NONE, "bodies": Claim.NONE,
    }  # fmt: skip
    assert (claims(worse)["latency"], claims(worse)["parallel"]) == (Claim.LOSS, Claim.LOSS)
    assert (better.verdict, worse.verdict) == (Overall.GAIN, Overall.LOSS)
    assert [each.row.name for each in worse.claimed(Claim.LOSS)] == ["latency", "parallel"]


def test_a_difference_within_the_margin_is_none_however_sure():
    found = summarize(result({"latency": 0.98, "parallel": 1.02}, noise=0.0001, rounds=30))
    assert claims(found)["latency"] is claims(found)["parallel"] is Claim.NONE
    assert found.verdict is Overall.NONE


def test_claims_are_corrected_for_the_number_of_rows():
    pairs = [Pair(n, 1.0, value) for n, value in enumerate([1.02, 1.16, 1.09, 1.05, 1.15, 1.03, 1.02, 1.14, 1.1, 1.06])]
    alone = compare(pairs, rows=1, higher_is_better=True)
    among_many = compare(pairs, rows=25, higher_is_better=True)
    assert (alone.claim, among_many.claim) == (Claim.GAIN, Claim.NONE)
    assert alone.interval == alone.corrected == among_many.interval


# -- what was not measured well enough


@pytest.mark.parametrize(("rows", "needed"), [(1, 6), (2, 7), (5, 8), (10, 9)])
def test_rounds_needed_are_those_after_which_chance_is_rarer_than_the_level(rows, needed):
    assert rounds_needed(rows) == needed
    assert 2 * 0.5**needed <= LEVEL / rows < 2 * 0.5 ** (needed - 1)


def test_few_rounds_have_a_ratio_and_say_how_many_are_needed():
    found = summarize(result({"latency": 0.5}, rounds=3))
    latency = found.rows[0].comparison
    assert latency.ratio == pytest.approx(0.5, rel=0.1)
    assert (latency.interval, latency.claim) == (None, None)
    assert latency.why == "3 complete rounds; a verdict needs 8"
    assert found.verdict is None


def test_rounds_enough_for_an_interval_are_not_enough_for_a_claim():
    found = summarize(result({"latency": 0.5}, rounds=6)).rows[0].comparison
    assert found.interval is not None
    assert (found.corrected, found.claim) == (None, None)


def test_a_round_that_was_cut_short_is_no_pair():
    whole = result({"latency": 0.8})
    latency = whole.rows[0]
    cut = dataclasses.replace(latency, samples=latency.samples[:-2])  # without eBPF's sample of the last round
    found = summarize(dataclasses.replace(whole, rows=(cut, *whole.rows[1:]), interrupted=True))
    assert [each.round for each in found.rows[0].comparison.pairs] == [1, 2, 3, 4, 5, 6, 7]
    assert found.rows[0].comparison.claim is None


def test_an_invalid_row_claims_nothing_and_says_why():
    whole = result({"latency": 0.5})
    row = dataclasses.replace(whole.rows[0], invalid="12 of 5000 requests bypassed a sidecar")
    found = summarize(dataclasses.replace(whole, rows=(row, *whole.rows[1:]))).rows[0]
    assert (found.comparison.claim, found.comparison.ratio) == (None, None)
    assert found.comparison.why == row.invalid
    assert len(found.comparison.pairs) == 8


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_figure_without_a_ratio_claims_nothing(value):
    found = compare([Pair(n, 1.0, value if n == 3 else 2.0) for n in range(9)], rows=1, higher_is_better=True)
    assert (found.ratio, found.claim) == (None, None)
    assert "round 3" in found.why


def test_no_row_at_all():
    found = summarize(dataclasses.replace(result(), rows=()))
    assert (found.rows, found.noise, found.verdict) == ((), None, None)


# -- the rules against themselves


def test_if_the_rules_differ_from_themselves_the_machine_is_too_noisy():
    found = summarize(result({"latency": 0.5, NOISE_ROW: 1.2}))
    assert found.noisy
    assert found.verdict is Overall.NOISY
    assert claims(found)["latency"] is Claim.GAIN


def test_without_the_rules_against_themselves_there_is_no_verdict():
    whole = result({"latency": 0.5})
    found = summarize(dataclasses.replace(whole, rows=whole.rows[:-1]))
    assert (found.noise, found.verdict) == (None, None)


def test_one_set_of_pods_that_is_slower_is_no_noise():
    """The roles are swapped from round to round, so that a slower set is in each role as often."""
    whole = result(noise=0.005)
    slower = [
        dataclasses.replace(each, value=each.value * (1.1 if each.slot == "B" else 1))
        for each in whole.rows[-1].samples
    ]
    row = dataclasses.replace(whole.rows[-1], samples=tuple(slower))
    found = summarize(dataclasses.replace(whole, rows=(*whole.rows[:-1], row)))
    assert found.noise.comparison.claim is Claim.NONE
    assert found.noise.comparison.ratio == pytest.approx(1, abs=0.02)


# -- several samples a round, and the figures beside a row's own


def test_both_samples_of_one_way_in_a_round_become_one():
    """A/B/A: a drift within the round is in both samples of the rules, and none in their mean."""
    samples = []
    for number in range(8):
        samples += [
            Sample(way, number, slot, value, "s", higher_is_better=False)
            for way, slot, value in ((Way.RULES, "A", 1.0), (Way.EBPF, "B", 2.0), (Way.RULES, "A", 4.0))
        ]
    row = RowResult("latency", "", "s", higher_is_better=False, samples=tuple(samples))
    found = summarize(dataclasses.replace(result(), rows=(row,))).rows[0].comparison
    assert found.pairs[0] == Pair(0, pytest.approx(2.0), 2.0)
    assert found.ratio == pytest.approx(1)


def test_percentiles_need_requests():
    assert [requests_needed(name) for name in ("p90", "p99", "p99.9")] == [100, 1000, 10_000]
    found = summarize(result(requests=5000)).rows[0]
    figures = found.ways[Way.RULES]
    assert figures.percentiles["p99"] == pytest.approx(0.0015, rel=0.3)
    assert figures.percentiles["p99.9"] is None
    assert found.ways[Way.DIRECT].percentiles == {}
    assert set(found.beside) == {CPU, "p90", "p99"}


def test_a_percentile_without_requests_in_one_sample_is_none():
    """Those that are left would be the fast rounds."""
    whole = result()
    few = dataclasses.replace(whole.rows[0].samples[0], requests=999)
    row = dataclasses.replace(whole.rows[0], samples=(few, *whole.rows[0].samples[1:]))
    found = summarize(dataclasses.replace(whole, rows=(row,))).rows[0]
    assert found.ways[few.way].percentiles["p99"] is None
    assert "p99" not in found.beside


def test_a_row_of_a_percentile_needs_requests_too():
    whole = result({"latency": 0.5}, requests=900)
    row = dataclasses.replace(whole.rows[0], title="small requests beside a transfer, p99")
    found = summarize(dataclasses.replace(whole, rows=(row, *whole.rows[1:]))).rows[0].comparison
    assert (found.ratio, found.claim, len(found.pairs)) == (None, None, 8)
    assert found.why == "p99 needs 1000 requests in each sample; one has 900"


def test_cpu_is_per_request_and_claims_nothing():
    found = summarize(result({"latency": 0.5})).rows[0]
    assert found.ways[Way.RULES].cpu == pytest.approx(0.0002, rel=0.1)
    assert found.ways[Way.DIRECT].cpu is None
    assert found.beside[CPU].ratio == pytest.approx(1, rel=0.05)
    assert found.beside[CPU].interval.low < 1 < found.beside[CPU].interval.high
    assert found.beside[CPU].claim is None
