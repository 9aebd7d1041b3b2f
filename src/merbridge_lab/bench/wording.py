"""A benchmark in words: its figures, what must be known before they are read, and what follows from them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from merbridge_lab.bench.model import NOISE_ROW, Way
from merbridge_lab.bench.statistics import ABOVE_PERCENTILE, LEVEL, MARGIN, PERCENTILES, Claim, Overall, requests_needed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from merbridge_lab.bench.statistics import BenchSummary, Interval, RowSummary

#: What is not known, or not known well enough.
UNKNOWN = "\N{EN DASH}"
#: From this share of all cores on, what others use is worth a warning.
_LOAD_TOLD = 0.05
#: From this share on, what the rules may differ from themselves is worth a warning.
_NOISE_TOLD = 0.1
NAMES = {Way.DIRECT: "no sidecars", Way.RULES: "rules", Way.EBPF: "eBPF"}
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_SCALED = ("B", "B/s", "bit/s")
_SAME_UNIT = {"bytes": "B", "bytes/s": "B/s", "bits/s": "bit/s", "requests/s": "/s", "req/s": "/s", "seconds": "s"}


def figure(value: float | None, unit: str) -> str:
    """Return a figure as a person reads it, with four significant digits at most; a dash for None."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    unit = _SAME_UNIT.get(unit, unit)
    if unit == "s":
        factor, name = next((each for each in _SECONDS if value >= each[0]), _SECONDS[-1])
        return f"{_digits(value / factor)} {name}"
    if unit in _SCALED:
        factor, prefix = next((each for each in _PREFIXES if value >= each[0]), (1.0, ""))
        return f"{_digits(value / factor)} {prefix}{unit}"
    return f"{_digits(value)}{'' if unit.startswith('/') else ' '}{unit}".rstrip()


def _digits(value: float) -> str:
    whole = len(str(int(abs(value))))
    return f"{value:,.{max(0, 3 - whole)}f}"


def ratio(value: float | None) -> str:
    """Return a ratio, rounded to the nearest hundredth; a dash for None."""
    return UNKNOWN if value is None else _hundredths(value, round)


def interval(known: Interval | None) -> str:
    """Return an interval, rounded outwards, so that it never looks narrower than it is; a dash for None."""
    return (
        UNKNOWN
        if known is None
        else f"{_hundredths(known.low, math.floor)}\N{EN DASH}{_hundredths(known.high, math.ceil)}"
    )


def _hundredths(value: float, rounding: Callable[[float], int]) -> str:
    digits = 2 if value >= 0.1 else 4  # noqa: PLR2004 - hundredths of a tenth would say little
    return f"{rounding(value * 10**digits) / 10**digits:.{digits}f}"


def claim(row: RowSummary) -> str:
    """Return gain, loss, ~ (no difference seen) or a dash (nothing may be said); noisy for the rules themselves."""
    told = row.comparison.claim
    if told is None:
        return UNKNOWN
    return "noisy" if row.row.name == NOISE_ROW and told is not Claim.NONE else told.value


def advantage(value: float, *, higher_is_better: bool) -> float:
    """Return a ratio turned so that above 1 is better: a latency of a half is 2."""
    return value if higher_is_better else 1 / value


def rule(summary: BenchSummary) -> str:
    """Return the sentence that says when something is claimed."""
    rows = len(summary.result.rows)
    corrected = f", corrected for {rows} rows ({100 - 100 * LEVEL / rows:.4g} %)," if rows > 1 else ""
    band = f"{1 - MARGIN:.2f}\N{EN DASH}{1 + MARGIN:.2f}"
    return f"A row is a gain or a loss only if its interval{corrected} leaves {band}; else no difference is seen (~)."


def percentile_rule() -> str:
    """Return the sentence that says when a percentile is told."""
    needed = ", ".join(f"{name} {requests_needed(name):,}" for name in PERCENTILES)
    return f"A percentile needs enough requests in each sample, so that {ABOVE_PERCENTILE} are above it: {needed}."


def warnings(summary: BenchSummary) -> list[str]:
    """Return, most important first, what must be known before the figures are read."""
    result = summary.result
    told = []
    if summary.noisy and summary.noise is not None:
        seen = summary.noise.comparison
        told.append(
            f"This machine is too noisy: the rules differ from themselves, by a ratio of {ratio(seen.ratio)}"
            f" ({interval(seen.corrected)}). No gain and no loss below can be trusted."
        )
    elif summary.noise is None:
        told.append("The rules were not measured against themselves: nothing says how noisy this machine is.")
    elif summary.noise.comparison.claim is None:
        why = summary.noise.comparison.why
        told.append(f"The rules were not measured against themselves well enough ({why}): there is no verdict.")
    elif (own := summary.noise.comparison.corrected) and (own.low < 1 - _NOISE_TOLD or own.high > 1 + _NOISE_TOLD):
        told.append(f"The rules against themselves are {interval(own)}: smaller differences cannot be told from noise.")
    if result.interrupted:
        told.append("The measurement was interrupted: only complete rounds count.")
    if result.outside_load >= _LOAD_TOLD:
        load = f"{100 * result.outside_load:.0f} %"
        told.append(f"Other processes used {load} of all cores meanwhile; measure again with nothing else running.")
    told += [f"{each.row.name} does not count: {each.row.invalid}" for each in summary.rows if each.row.invalid]
    few: dict[str, list[str]] = {}
    for each in summary.rows:
        if each.comparison.claim is None and not each.row.invalid:
            few.setdefault(str(each.comparison.why), []).append(each.row.name)
    told += [f"No verdict for {listed(names)}: {why}." for why, names in few.items()]
    return told


def conclusion(summary: BenchSummary) -> str:
    """Return in a sentence or two what follows for whoever asks whether eBPF pays off here."""
    if summary.verdict is Overall.NOISY:
        return "Nothing follows from this run: on this machine the same measurement differs from itself."
    if summary.verdict is None:
        return "Nothing follows from this run: too little was measured."
    gains, losses, same = (summary.claimed(each) for each in (Claim.GAIN, Claim.LOSS, Claim.NONE))
    parts = []
    if gains:
        parts.append(f"eBPF pays off here for {_with_ratios(gains)}")
    if losses:
        parts.append(f"{'it' if gains else 'eBPF'} is worse than the rules for {_with_ratios(losses)}")
    if same:
        names = listed([each.row.name for each in same])
        parts.append(f"no difference seen {'for' if gains or losses else 'between eBPF and the rules for'} {names}")
    told = "; ".join(parts)
    return told[0].upper() + told[1:] + "." if not gains and not told.startswith("eBPF") else told + "."


def _with_ratios(rows: Sequence[RowSummary]) -> str:
    return listed([f"{each.row.name} ({ratio(each.comparison.ratio)})" for each in rows])


def listed(names: Sequence[str]) -> str:
    """Return "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
