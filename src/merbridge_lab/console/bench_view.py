"""A benchmark in the terminal: warnings, a table with bars, and what follows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.text import Text

from merbridge_lab.bench import wording
from merbridge_lab.bench.model import NOISE_ROW, Way
from merbridge_lab.bench.statistics import CPU, Claim
from merbridge_lab.console.views import columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from merbridge_lab.bench.statistics import BenchSummary, Comparison, RowSummary
    from merbridge_lab.console.terminal import Terminal

#: The narrowest pages on which there is room for bars, and for the limit without sidecars.
_WITH_BARS, _WITH_LIMIT = 78, 100
#: What the other columns leave for the bars, in characters: at least so many, at most so many.
_BAR = (15, 41)
#: The columns of the table without its bars, in characters.
_TABLE = 61
_STYLES = {Claim.GAIN: "pass", Claim.LOSS: "fail", Claim.NONE: "default", None: "faint"}
#: Interval, bar, ratio and one.
_DRAWN = {True: ("─", "━", "●", "│"), False: ("-", "=", "o", "|")}
#: What a terminal that has only ASCII shows instead.
_ASCII = str.maketrans({wording.UNKNOWN: "-", "µ": "u"})
#: The axis reaches at least so far from one: small differences stay small.
_REACH = 1.25


def benchmark(terminal: Terminal, summary: BenchSummary) -> None:
    """Print what was measured: first what makes it doubtful, then a row each, then what follows from it.

    With -q, no rows.
    """
    rows = (*summary.rows, *([summary.noise] if summary.noise else []))
    for number, sentence in enumerate(told := wording.warnings(summary)):
        style = "warn" if summary.noisy and not number else "default"
        terminal.prose(_shown(terminal, sentence), 2, mark="[warn]![/] ", style=style)
    if terminal.verbosity >= 0:
        if told:
            terminal.line("")
        _table(terminal, rows)
        terminal.line("")
        if terminal.verbosity > 0:
            _beside(terminal, summary.rows)
        for sentence in (wording.rule(summary), _machine(summary)):
            terminal.prose(_shown(terminal, sentence), 0, style="faint")
        terminal.line("")
    terminal.prose(_shown(terminal, wording.conclusion(summary)), 0, style="title")


def _shown(terminal: Terminal, text: str) -> str:
    return text if terminal.unicode else text.translate(_ASCII)


def _table(terminal: Terminal, rows: Sequence[RowSummary]) -> None:
    width = terminal.out.width
    limit = width >= _WITH_LIMIT and any(Way.DIRECT in each.ways for each in rows)
    room = min(max(width - _TABLE - (14 if limit else 0), _BAR[0]), _BAR[1])
    bars = width >= _WITH_BARS
    head = "worse".rjust(room // 2 - 1) + (" │ " if terminal.unicode else " | ") + "better"
    names = ["", *(["no sidecars"] if limit else []), "rules", "eBPF", "ratio", "95 %", "", *([head] if bars else [])]
    table = columns(*names)
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1 : 5 + limit]:
        column.justify = "right"
    reach = _reach(rows)
    for each in rows:
        told = each.comparison
        cells = [
            each.row.name,
            *([_median(each, Way.DIRECT)] if limit else []),
            _median(each, Way.RULES),
            _median(each, Way.EBPF) if each.row.name != NOISE_ROW else "",
            wording.ratio(told.ratio),
            wording.interval(told.interval),
        ]
        claim = Text(_shown(terminal, wording.claim(each)), style=_style(each))
        bar = [_bar(each, room, reach, unicode=terminal.unicode)] if bars else []
        table.add_row(*(escape(_shown(terminal, cell)) for cell in cells), claim, *bar)
    terminal.out.print(table)


def _median(row: RowSummary, way: Way) -> str:
    figures = row.ways.get(way)
    return wording.figure(figures.median if figures else None, row.row.unit)


def _style(row: RowSummary) -> str:
    claim = row.comparison.claim
    return "warn" if row.row.name == NOISE_ROW and claim is not Claim.NONE else _STYLES[claim]


def _ends(row: RowSummary) -> tuple[float, float, float] | None:
    """Return lower end, ratio and upper end, turned so that above 1 is better; None if there is no ratio."""
    found = row.comparison
    if found.ratio is None:
        return None
    ends = (found.interval.low, found.ratio, found.interval.high) if found.interval else (found.ratio,) * 3
    low, middle, high = sorted(wording.advantage(end, higher_is_better=row.row.higher_is_better) for end in ends)
    return low, middle, high


def _reach(rows: Sequence[RowSummary]) -> float:
    """Return how far the axis goes from 1 in both directions, as a factor."""
    known = [ends for each in rows if (ends := _ends(each))]
    return max([_REACH, *(max(high, 1 / low) for low, _, high in known)])


def _bar(row: RowSummary, room: int, reach: float, *, unicode: bool) -> Text:
    """Draw from 1 to the ratio a bar, and its interval; all rows have one axis, which is logarithmic."""
    half = room // 2
    cells = [" "] * (2 * half + 1)
    thin, thick, point, one = _DRAWN[unicode]

    def at(value: float) -> int:
        return half + round(half * math.log(value) / math.log(reach))

    if ends := _ends(row):
        low, middle, high = map(at, ends)
        cells[low : high + 1] = thin * (high + 1 - low)
        begin, end = sorted((half, middle))
        cells[begin : end + 1] = thick * (end + 1 - begin)
        cells[half] = one
        cells[middle] = point
    else:
        cells[half] = one
    return Text("".join(cells), style=_style(row))


def _beside(terminal: Terminal, rows: Sequence[RowSummary]) -> None:
    """Print the other figures of each row, which claim nothing."""
    for row in rows:
        for told in _lines(row):
            terminal.prose(_shown(terminal, told), 3, mark="   ", style="faint")
    terminal.prose(_shown(terminal, wording.percentile_rule()), 3, mark="   ", style="faint")
    terminal.line("")


def _lines(row: RowSummary) -> Iterator[str]:
    rules, ebpf = row.ways.get(Way.RULES), row.ways.get(Way.EBPF)
    yield f"{row.row.name}: {row.row.title}; {len(row.comparison.pairs)} rounds"
    if rules is None or ebpf is None:
        return
    figures: dict[str, tuple[float | None, float | None]] = {}
    if rules.cpu is not None and ebpf.cpu is not None:
        figures[CPU] = rules.cpu, ebpf.cpu
    for name in dict.fromkeys((*rules.percentiles, *ebpf.percentiles)):
        figures[name] = rules.percentiles.get(name), ebpf.percentiles.get(name)
    for name, (by_rules, by_ebpf) in figures.items():
        title = "CPU per request" if name == CPU else name
        values = f"{wording.figure(by_rules, 's')} by the rules, {wording.figure(by_ebpf, 's')} by eBPF"
        yield f"{row.row.name}, {title}: {values}{_compared(row.beside.get(name))}"


def _compared(found: Comparison | None) -> str:
    return f"; {wording.ratio(found.ratio)} ({wording.interval(found.interval)})" if found else ""


def _machine(summary: BenchSummary) -> str:
    result = summary.result
    facts = ", ".join(f"{name} {value}" for name, value in result.machine.items())
    load = f"{100 * result.outside_load:.1f} % of all cores used by others"
    rounds = "1 round" if result.rounds == 1 else f"{result.rounds} rounds"
    return f"{rounds} in {result.seconds:.0f} s; {load}; {facts}."
