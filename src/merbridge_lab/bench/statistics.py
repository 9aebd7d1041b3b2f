"""What the samples of a benchmark say: paired ratios, their intervals, and what may be claimed.

A row is compared round by round: the figure by eBPF over that by the rules in the same round. What changes slowly on
the machine changes both and cancels out. The ratio of a row is the geometric mean of these, its interval
a bootstrap of their logarithms.
"""

from __future__ import annotations

import enum
import math
import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from merbridge_lab.bench.bootstrap import RESAMPLES, bootstrap
from merbridge_lab.bench.model import NOISE_ROW, Way

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from merbridge_lab.bench.model import BenchResult, RowResult, Sample

#: How often an interval may miss the true ratio; for claims it is divided by the number of rows (Bonferroni).
LEVEL = 0.05
#: A difference smaller than this is never claimed.
MARGIN = 0.03
#: An end of an interval is at most by this factor away from the ratio: beyond it nothing is known.
FARTHEST = 1000.0
#: A percentile needs so many requests above it in each sample: 1000 in all for p99, 10,000 for p99.9.
ABOVE_PERCENTILE = 10
PERCENTILES = {"p90": 0.9, "p99": 0.99, "p99.9": 0.999}
#: The name of the comparison of CPU seconds per request, beside a row's own.
CPU = "cpu"


class Claim(enum.Enum):
    """What may be said of a row."""

    GAIN = "gain"
    LOSS = "loss"
    NONE = "~"


class Overall(enum.Enum):
    """What may be said of the whole: too noisy for claims, at least one loss, gains alone, or no difference."""

    NOISY = "noisy"
    LOSS = "loss"
    GAIN = "gain"
    NONE = "~"


@dataclass(frozen=True)
class Interval:
    """The ratios from `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Pair:
    """The figures of one round: of the rules, and of what is compared with them."""

    round: int
    baseline: float
    candidate: float

    @property
    def ratio(self) -> float:
        """Return candidate over baseline."""
        return self.candidate / self.baseline


@dataclass(frozen=True)
class Comparison:
    """A figure by eBPF over that by the rules.

    `interval` holds the true ratio with 95 %; `corrected` decides about claims: those of all rows hold theirs together
    with 95 %. `claim` is None where nothing may be said, not even "no difference"; `why` is the reason then.
    """

    pairs: tuple[Pair, ...] = ()
    ratio: float | None = None
    interval: Interval | None = None
    corrected: Interval | None = None
    claim: Claim | None = None
    why: str | None = None


@dataclass(frozen=True)
class Figures:
    """One way's figures over all rounds, in the row's unit; `cpu` is in seconds per request, `percentiles` in seconds.

    A percentile is None if a sample had too few requests for it.
    """

    median: float
    least: float
    most: float
    samples: int
    cpu: float | None
    percentiles: Mapping[str, float | None]


@dataclass(frozen=True)
class RowSummary:
    """A row with what it says; `beside` compares other figures of the same samples, which claim nothing."""

    row: RowResult
    ways: Mapping[Way, Figures]
    comparison: Comparison
    beside: Mapping[str, Comparison] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchSummary:
    """A result with what it says. `rows` leaves out the row that compares the rules with themselves: it is `noise`."""

    result: BenchResult
    rows: tuple[RowSummary, ...]
    noise: RowSummary | None

    def claimed(self, claim: Claim) -> tuple[RowSummary, ...]:
        """Return the rows with this claim, whether or not the machine is too noisy to trust it."""
        return tuple(each for each in self.rows if each.comparison.claim is claim)

    @property
    def noisy(self) -> bool:
        """Report whether a difference is seen between the rules and themselves."""
        return self.noise is not None and self.noise.comparison.claim in (Claim.GAIN, Claim.LOSS)

    @property
    def verdict(self) -> Overall | None:
        """Return what may be said of the whole; None if no row, or not the noise, was measured well enough."""
        if self.noisy:
            return Overall.NOISY
        if self.noise is None or self.noise.comparison.claim is None:
            return None
        if self.claimed(Claim.LOSS):
            return Overall.LOSS
        if self.claimed(Claim.GAIN):
            return Overall.GAIN
        return Overall.NONE if self.claimed(Claim.NONE) else None


def rounds_needed(rows: int) -> int:
    """Return the fewest rounds after which one of `rows` rows can claim something.

    With fewer, even equal ways are all on one side of 1 by chance more often than the level allows.
    """
    return 1 + math.ceil(math.log2(rows / LEVEL))


def summarize(result: BenchResult) -> BenchSummary:
    """Return what the samples of `result` say."""
    rows = {row.name: _row(row, len(result.rows)) for row in result.rows}
    noise = rows.pop(NOISE_ROW, None)
    return BenchSummary(result, tuple(rows.values()), noise)


def _row(row: RowResult, rows: int) -> RowSummary:
    by_way = {way: [each for each in row.samples if each.way is way] for way in Way}
    ways = {way: _figures(samples) for way, samples in by_way.items() if samples}
    if row.invalid is not None:
        return RowSummary(row, ways, Comparison(_pairs(row, _value), why=row.invalid))
    comparison = compare(_pairs(row, _value), rows=rows, higher_is_better=row.higher_is_better)
    if why := _too_few_requests(row):
        comparison = Comparison(comparison.pairs, why=why)
    beside = {
        name: replace(compare(pairs, rows=rows, higher_is_better=False), corrected=None, claim=None)
        for name, figure in {CPU: _cpu, **{name: _percentile(name) for name in PERCENTILES}}.items()
        if (pairs := _pairs(row, figure)) and len(pairs) == len(comparison.pairs)
    }
    return RowSummary(row, ways, comparison, beside)


def compare(pairs: Sequence[Pair], *, rows: int, higher_is_better: bool, resamples: int = RESAMPLES) -> Comparison:
    """Compare candidate and baseline, as one of `rows` rows."""
    kept = tuple(pairs)
    if not kept:
        return Comparison(why="no round has both ways")
    if bad := next((each for each in kept if not (_positive(each.baseline) and _positive(each.candidate))), None):
        return Comparison(kept, why=f"round {bad.round} has {bad.candidate:g} and {bad.baseline:g}: no ratio")
    logs = [math.log(each.ratio) for each in kept]
    mean, far = statistics.fmean(logs), math.log(FARTHEST)
    ratio = math.exp(mean)
    if len(kept) < rounds_needed(1):
        return Comparison(kept, ratio, why=_too_few(len(kept), rounds_needed(rows)))
    interval, corrected = (
        Interval(*(ratio * math.exp(min(max(end - mean, -far), far)) for end in ends))
        for ends in bootstrap(logs, (LEVEL, LEVEL / rows), resamples=resamples)
    )
    if len(kept) < rounds_needed(rows):
        return Comparison(kept, ratio, interval, why=_too_few(len(kept), rounds_needed(rows)))
    claim = _claim(corrected, higher_is_better=higher_is_better)
    return Comparison(kept, ratio, interval, corrected, claim)


def _too_few(rounds: int, needed: int) -> str:
    return f"{rounds} complete {'round' if rounds == 1 else 'rounds'}; a verdict needs {needed}"


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _claim(interval: Interval, *, higher_is_better: bool) -> Claim:
    if interval.low > 1 + MARGIN:
        return Claim.GAIN if higher_is_better else Claim.LOSS
    if interval.high < 1 - MARGIN:
        return Claim.LOSS if higher_is_better else Claim.GAIN
    return Claim.NONE


def _pairs(row: RowResult, figure: Callable[[Sample], float | None]) -> tuple[Pair, ...]:
    """Return the rounds that have the figure by both ways; several samples of a way in a round become one."""
    pairs = []
    for number in sorted({each.round for each in row.samples}):
        in_round = [each for each in row.samples if each.round == number]
        baseline = _one([figure(each) for each in in_round if _is_baseline(row, each)])
        candidate = _one([figure(each) for each in in_round if _is_candidate(row, each)])
        if baseline is not None and candidate is not None:
            pairs.append(Pair(number, baseline, candidate))
    return tuple(pairs)


def _is_baseline(row: RowResult, sample: Sample) -> bool:
    # Of the rules against themselves, the two sets of pods swap their roles from round to round, as elsewhere.
    own = row.name != NOISE_ROW or sample.slot == "AB"[sample.round % 2]
    return sample.way is Way.RULES and own


def _is_candidate(row: RowResult, sample: Sample) -> bool:
    if row.name == NOISE_ROW:
        return sample.way is Way.RULES and not _is_baseline(row, sample)
    return sample.way is Way.EBPF


def _one(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    if not known or len(known) < len(values):
        return None
    # A geometric mean has no zeros; what has one gets no ratio either.
    return statistics.geometric_mean(known) if all(map(_positive, known)) else min(known)


def _value(sample: Sample) -> float | None:
    return sample.value


def _cpu(sample: Sample) -> float | None:
    if sample.cpu_seconds is None or not sample.requests:
        return None
    return sample.cpu_seconds / sample.requests


def _too_few_requests(row: RowResult) -> str | None:
    """Return why the row's own figure, if its title ends with that of a percentile, is not known well enough."""
    name = row.title.rpartition(" ")[2]
    if name not in PERCENTILES:
        return None
    needed = requests_needed(name)
    least = min((each.requests or 0 for each in row.samples), default=0)
    return f"{name} needs {needed} requests in each sample; one has {least}" if least < needed else None


def requests_needed(percentile: str) -> int:
    """Return how many requests a sample needs for this percentile ("p99")."""
    return round(ABOVE_PERCENTILE / (1 - PERCENTILES[percentile]))


def _percentile(name: str) -> Callable[[Sample], float | None]:
    def figure(sample: Sample) -> float | None:
        enough = sample.requests is not None and sample.requests >= requests_needed(name)
        return sample.extra.get(name) if enough else None

    return figure


def _figures(samples: Sequence[Sample]) -> Figures:
    values = [each.value for each in samples]
    told = [name for name in PERCENTILES if any(name in each.extra for each in samples)]
    return Figures(
        median=statistics.median(values),
        least=min(values),
        most=max(values),
        samples=len(values),
        cpu=_median([_cpu(each) for each in samples]),
        percentiles={name: _median([_percentile(name)(each) for each in samples]) for name in told},
    )


def _median(values: Sequence[float | None]) -> float | None:
    """Return the median, or None if one is unknown: those with many requests alone would be the fast rounds."""
    known = [each for each in values if each is not None]
    return statistics.median(known) if known and len(known) == len(values) else None
