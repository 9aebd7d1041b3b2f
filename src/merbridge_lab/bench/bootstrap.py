"""The interval of a mean by resampling.

It is studentized (Efron and Tibshirani, An Introduction to the Bootstrap, 12.5): it holds its level with few values,
where the percentile bootstrap is too narrow. The random numbers have a fixed seed: the same values, the same interval.
"""

from __future__ import annotations

import math
import operator
import random
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RESAMPLES = 10_000
_SEED = 16
#: Values whose standard deviation is smaller than this are the same.
_SAME = 1e-9
#: So are those of a resample where it is smaller than this share of that of all values.
_SAME_SHARE = 1e-6
#: The score of such a resample, if its mean is not that of all values: beyond every other.
_BOUNDLESS = 1e9


def bootstrap(
    values: Sequence[float], levels: Iterable[float], *, resamples: int = RESAMPLES
) -> list[tuple[float, float]]:
    """Return for each of `levels` the interval that misses the mean so often: a studentized bootstrap.

    `values` are at least two, of any unit. Where all but a few are the same, resamples of one value are not rare: they
    tell nothing about the end on their side, and it is then far beyond any value.
    """
    count, mean, error = len(values), statistics.fmean(values), statistics.stdev(values)
    if error < _SAME:
        return [(mean, mean) for _ in levels]
    centered = [each - mean for each in values]
    drawn = iter(random.Random(_SEED).choices(centered, k=count * resamples))  # noqa: S311 - no secret
    scores = []
    for resample in zip(*[drawn] * count, strict=True):
        total = sum(resample)
        squares = sum(map(operator.mul, resample, resample)) - total * total / count
        spread, away = math.sqrt(max(squares, 0.0) / (count - 1)), total / count
        if spread > _SAME_SHARE * error:
            scores.append(away / spread)
        else:
            scores.append(math.copysign(_BOUNDLESS, away) if abs(away) > _SAME_SHARE * error else 0.0)
    scores.sort()
    # A high score means that the sample's mean is above the true one, so it makes the lower end.
    return [
        (mean - _quantile(scores, 1 - level / 2) * error, mean - _quantile(scores, level / 2) * error)
        for level in levels
    ]


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which `share` of them lie, interpolated between neighbours."""
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)
