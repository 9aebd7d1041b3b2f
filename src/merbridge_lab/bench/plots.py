"""The geometry of a report's plots: positions in percent, so that they fit every width without scaling their text.

All axes of ratios are logarithmic. They have 1 in the middle, and what is better to the right or on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab.bench import wording
from merbridge_lab.bench.model import Way
from merbridge_lab.bench.statistics import MARGIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.bench.statistics import Interval, RowSummary

#: An axis reaches at least so far from 1, as a factor: small differences stay small.
_REACH = 1.25
#: How much of half the width the reach takes; the rest is margin.
_USED = 0.92
#: Ticks, as factors; an axis shows those within its reach.
_TICKS = (1.1, 1.25, 1.5, 2, 3, 5, 10, 30, 100)
#: More ticks than this on one side would touch each other on a phone.
_MOST_TICKS = 2


@dataclass(frozen=True)
class Span:
    """From `start` on, `length` long; both in percent."""

    start: float
    length: float

    @property
    def end(self) -> float:
        """Return where it ends."""
        return self.start + self.length


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from 1/reach to reach."""

    reach: float

    def at(self, factor: float) -> float:
        """Return where `factor` is, in percent from the worse end."""
        return round(50 + 50 * _USED * math.log(factor) / math.log(self.reach), 3)

    def span(self, ends: Interval | None, *, higher_is_better: bool) -> Span | None:
        """Return where an interval of ratios is."""
        if ends is None:
            return None
        low, high = sorted(
            self.at(wording.advantage(end, higher_is_better=higher_is_better)) for end in (ends.low, ends.high)
        )
        return Span(low, round(high - low, 3))

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Return the ticks, from the worse end on: where, and what stands there."""
        within = [each for each in _TICKS if each <= self.reach * 1.001]
        shown = within[-_MOST_TICKS:]
        factors = [*(1 / each for each in reversed(shown)), 1.0, *shown]
        return [(self.at(each), _told(each)) for each in factors]


def _told(factor: float) -> str:
    return "1" if factor == 1 else "\N{MULTIPLICATION SIGN}" + f"{factor:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class RatioPlot:
    """One row on the axis of all: the band without claims, both intervals, the ratio."""

    band: Span
    interval: Span | None
    corrected: Span | None
    ratio: float | None


@dataclass(frozen=True)
class Bar:
    """The figures of one way: the median as a bar from 0 on, and from the least to the most."""

    way: str
    name: str
    told: str
    range: str
    length: float
    whisker: Span


@dataclass(frozen=True)
class RoundsPlot:
    """The ratio of each round, from left to right; `y` is in percent from the top."""

    axis: Axis
    points: tuple[tuple[float, float, str], ...]
    ratio: float | None
    interval: Span | None
    band: Span


def common_axis(rows: Sequence[RowSummary]) -> Axis:
    """Return an axis that holds the intervals of all rows."""
    factors = []
    for each in rows:
        found = each.comparison
        for ends in (found.interval, found.corrected):
            factors += [ends.low, ends.high] if ends else []
        factors += [found.ratio] if found.ratio is not None else []
    return _axis(factors)


def _axis(factors: Sequence[float]) -> Axis:
    return Axis(max([_REACH, *(max(each, 1 / each) for each in factors)]))


def ratio_plot(row: RowSummary, axis: Axis) -> RatioPlot:
    """Return the row on the axis of all rows."""
    found, higher = row.comparison, row.row.higher_is_better
    ratio = None if found.ratio is None else axis.at(wording.advantage(found.ratio, higher_is_better=higher))
    return RatioPlot(
        band=_band(axis, higher=higher),
        interval=axis.span(found.interval, higher_is_better=higher),
        corrected=axis.span(found.corrected, higher_is_better=higher),
        ratio=ratio,
    )


def _band(axis: Axis, *, higher: bool) -> Span:
    ends = sorted(axis.at(wording.advantage(end, higher_is_better=higher)) for end in (1 - MARGIN, 1 + MARGIN))
    return Span(ends[0], round(ends[1] - ends[0], 3))


def bars(row: RowSummary) -> list[Bar]:
    """Return the ways of a row as bars from 0 on."""
    unit = row.row.unit
    most = max((each.most for each in row.ways.values() if math.isfinite(each.most)), default=0.0)
    if most <= 0:
        return []

    def share(value: float) -> float:
        return round(100 * min(max(value, 0.0), most) / most, 3)

    found = []
    for way in (Way.DIRECT, Way.RULES, Way.EBPF):
        if figures := row.ways.get(way):
            low, high = share(figures.least), share(figures.most)
            ends = f"{wording.figure(figures.least, unit)} to {wording.figure(figures.most, unit)}"
            median = wording.figure(figures.median, unit)
            whisker = Span(low, round(high - low, 3))
            found.append(Bar(way.value, wording.NAMES[way], median, ends, share(figures.median), whisker))
    return found


def rounds_plot(row: RowSummary) -> RoundsPlot | None:
    """Return the ratios of the rounds; None if the row has no ratio."""
    found, higher = row.comparison, row.row.higher_is_better
    if found.ratio is None:
        return None
    ratios = [pair.ratio for pair in found.pairs]
    axis = _axis([*ratios, *((found.interval.low, found.interval.high) if found.interval else ())])

    def top(ratio: float) -> float:
        return round(100 - axis.at(wording.advantage(ratio, higher_is_better=higher)), 3)

    def turned(span: Span) -> Span:
        return Span(round(100 - span.end, 3), span.length)

    interval = axis.span(found.interval, higher_is_better=higher)
    points = tuple(
        (round(4 + 92 * (number + 0.5) / len(ratios), 3), top(ratio), wording.ratio(ratio))
        for number, ratio in enumerate(ratios)
    )
    return RoundsPlot(
        axis, points, top(found.ratio), turned(interval) if interval else None, turned(_band(axis, higher=higher))
    )
