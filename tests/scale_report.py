"""The report of `make scale`: one HTML file with tables and plots, without links to anything outside."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from merbridge_lab.templates import render_html

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.scale import Cost

    from merbridge_lab.bench.statistics import Comparison

#: What is plotted over the number of pods: the name of a figure, its unit, and the goal in that unit.
_PLOTTED = (
    ("make", "ms of processor time to make one pod", 150.0),
    ("check", "ms of processor time to check one pod", None),
    ("attach", "ms of processor time to attach one pod", None),
    ("detach", "ms of processor time to detach one pod", None),
    ("app", "KB of private memory of a pod's app", 5000.0),
    ("kernel", "KB of the kernel's unreclaimable memory for one pod", 5000.0),
)
_WIDTH, _HEIGHT, _LEFT = 480, 120, 60

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>merlab: scale</title>
<style>body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}svg{display:block}
td,th{padding:.1em .8em;text-align:right}circle,.mark{fill:#06c}polyline{fill:none;stroke:#06c}
.axis{stroke:#888}.goal{stroke:#c30;stroke-dasharray:4}text{font-size:11px;fill:#444}</style>
<h1>What pods and connections cost</h1>
<p>{% for name, value in facts.items() %}{{ name }}: {{ value }}{{ "; " if not loop.last }}{% endfor %}</p>
{% for plot in plots %}<h2>{{ plot.title }}</h2>
<svg width="{{ width + 2 * left }}" height="{{ height + 30 }}" role="img" aria-label="{{ plot.title }}">
<line class="axis" x1="{{ left }}" y1="{{ height }}" x2="{{ left + width }}" y2="{{ height }}"/>
{% if plot.goal is not none %}<line class="goal" x1="{{ left }}" y1="{{ plot.goal }}" x2="{{ left + width }}"
 y2="{{ plot.goal }}"/>{% endif %}
<polyline points="{% for dot in plot.dots %}{{ dot.x }},{{ dot.y }} {% endfor %}"/>
{% for dot in plot.dots %}<circle cx="{{ dot.x }}" cy="{{ dot.y }}" r="3"/>
<text x="{{ dot.x }}" y="{{ dot.y - 6 }}">{{ dot.value }}</text>
<text x="{{ dot.x }}" y="{{ height + 14 }}">{{ dot.pods }} pods</text>{% endfor %}
</svg>{% endfor %}
{% for name, row in ratios.items() %}<h2>p50, {{ name }}: {{ row.text }}</h2>
<svg width="{{ width + 2 * left }}" height="50" role="img" aria-label="{{ name }}">
<line class="axis" x1="{{ row.one }}" y1="0" x2="{{ row.one }}" y2="34"/><text x="{{ row.one - 3 }}" y="47">1</text>
{% if row.low is not none %}<rect class="mark" x="{{ row.low }}" y="14" width="{{ row.width }}" height="4"/>{% endif %}
{% for x in row.pairs %}<circle cx="{{ x }}" cy="26" r="2"/>{% endfor %}</svg>{% endfor %}
<script type="application/json">{{ data }}</script>
</html>
"""


def html(costs: Sequence[Cost], found: Mapping[str, Comparison], facts: Mapping[str, str]) -> str:
    """Return the report."""
    data = {"costs": [asdict(each) for each in costs], "facts": dict(facts)}
    data["ratios"] = {name: [pair.ratio for pair in each.pairs] for name, each in found.items()}
    return render_html(
        _PAGE,
        facts=facts,
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        plots=[_plot(costs, *each) for each in _PLOTTED],
        ratios={name: _ratio(each) for name, each in found.items()},
        data=json.dumps(data).replace("<", "\\u003c"),
    )


def _plot(costs: Sequence[Cost], name: str, title: str, goal: float | None) -> dict[str, object]:
    values = [getattr(each, name) for each in costs]
    most, widest = max([*values, goal or 0.0, 0.001]) * 1.15, max(each.pods for each in costs)

    def y(value: float) -> float:
        return round(_HEIGHT * (1 - max(0.0, value) / most), 1)

    dots = [
        {"x": round(_LEFT + _WIDTH * each.pods / widest, 1), "y": y(value), "pods": each.pods, "value": f"{value:.1f}"}
        for each, value in zip(costs, values, strict=True)
    ]
    return {"title": title, "dots": dots, "goal": None if goal is None else y(goal)}


def _ratio(found: Comparison) -> dict[str, object]:
    ratios = [pair.ratio for pair in found.pairs]
    ends = [found.interval.low, found.interval.high] if found.interval else []
    span = max([abs(math.log(each)) for each in (*ratios, *ends)] + [0.05]) * 1.1

    def x(ratio: float) -> float:
        return round(_LEFT + _WIDTH * (1 + math.log(ratio) / span) / 2, 1)

    low, high = (x(ends[0]), x(ends[1])) if ends else (None, None)
    text = f"{found.ratio:.3f} ({ends[0]:.3f} to {ends[1]:.3f})" if ends and found.ratio else found.why
    width = None if low is None or high is None else round(high - low, 1)
    return {"text": text, "one": x(1.0), "low": low, "width": width, "pairs": [x(each) for each in ratios]}
