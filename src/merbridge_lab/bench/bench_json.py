"""A benchmark as scripts see it (docs/json.md)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from merbridge_lab import __version__
from merbridge_lab.bench import wording

if TYPE_CHECKING:
    from merbridge_lab.bench.statistics import BenchSummary, Comparison, Figures, Interval, Pair, RowSummary

_SCHEMA = 1


def to_json(summary: BenchSummary, *, lab: str) -> dict[str, Any]:
    """Return it as scripts see it; the last row is that of the rules against themselves, where it was measured."""
    result = summary.result
    rows = (*summary.rows, *([summary.noise] if summary.noise else []))
    return {
        "schema": _SCHEMA,
        "merlab": __version__,
        "command": "bench",
        "lab": lab,
        "seconds": round(result.seconds, 3),
        "verdict": summary.verdict.value if summary.verdict else None,
        "conclusion": wording.conclusion(summary),
        "warnings": wording.warnings(summary),
        "rounds": result.rounds,
        "interrupted": result.interrupted,
        "outside_load": _number(result.outside_load),
        "machine": dict(result.machine),
        "rows": [_row(row) for row in rows],
    }


def _row(summary: RowSummary) -> dict[str, Any]:
    row, found = summary.row, summary.comparison
    return {
        "name": row.name,
        "title": row.title,
        "unit": row.unit,
        "higher_is_better": row.higher_is_better,
        "ways": {way.value: _figures(figures) for way, figures in summary.ways.items()},
        **_compared(found),
        "corrected": _interval(found.corrected),
        "verdict": found.claim.value if found.claim else None,
        "why": found.why,
        "invalid": row.invalid,
        "pairs": [_pair(pair) for pair in found.pairs],
        "beside": {name: _compared(each) for name, each in summary.beside.items()},
    }


def _compared(found: Comparison) -> dict[str, Any]:
    return {"ratio": _number(found.ratio), **_interval(found.interval)}


def _interval(known: Interval | None) -> dict[str, Any]:
    return {"low": known.low if known else None, "high": known.high if known else None}


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        "median": _number(figures.median),
        "least": _number(figures.least),
        "most": _number(figures.most),
        "samples": figures.samples,
        "cpu": _number(figures.cpu),
        "percentiles": {name: _number(value) for name, value in figures.percentiles.items()},
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {"round": pair.round, "baseline": _number(pair.baseline), "candidate": _number(pair.candidate)}


def _number(value: float | None) -> float | None:
    """Return None for what JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None
