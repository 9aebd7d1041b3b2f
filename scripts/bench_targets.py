"""Measure merlab's dataplane against what is aimed at: `make bench`, or `python scripts/bench_targets.py [--write]`.

It runs `merlab bench` on the embedded lab that is up, with the legs `all` and then `safe`, and prints a row for each
aim: reached, or how much is missing. --write puts the table into docs/performance.md. The exit status is 1 if a row is
slower than the rules, 3 if it could not be measured.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merbridge_lab.bench import wording
from merbridge_lab.bench.statistics import Interval

DOCUMENT = Path(__file__).parent.parent / "docs/performance.md"
BEGIN, END = "<!-- make bench -->\n", "<!-- end of make bench -->\n"
PROFILES = ("all", "safe")
#: Enough for a verdict of ten rows, and a multiple of four: sets and order are balanced.
ROUNDS = 12

#: What `merlab bench --json` prints, or a part of it.
Told = dict[str, Any]


@dataclass(frozen=True)
class Aim:
    """What a row's ratio is to be: `ratio` at most, or at least. `beside`: that of a figure next to the row's own."""

    row: str
    what: str
    ratio: float
    at_least: bool = False
    beside: str | None = None

    def shown(self) -> str:
        """Return the aim as it is in the table."""
        return f"{'≥' if self.at_least else '≤'} {self.ratio:.2f}"

    def verdict(self, told: Told) -> str:
        """Return whether it is reached, or by how much of the aim it is missed."""
        ratio = self._measured(told).get("ratio")
        if ratio is None:
            return "not measured"
        share = ratio / self.ratio
        missing = 1 - share if self.at_least else share - 1
        return f"{missing:.0%} short" if missing > 0 else "reached"

    def found(self, told: Told) -> str:
        """Return the ratio and its interval, or why there is none."""
        seen = self._measured(told)
        if seen.get("ratio") is None:
            row = self._row(told)
            lacking = "too few requests in a sample" if self.beside else row["why"]
            return str(row["invalid"] or lacking or wording.UNKNOWN)
        known = None if seen["low"] is None else Interval(seen["low"], seen["high"])  # of few rounds there is none
        return f"{wording.ratio(seen['ratio'])} ({wording.interval(known)})"

    def figure(self, told: Told, way: str) -> str:
        """Return the median of one way."""
        row = self._row(told)
        figures = row["ways"].get(way, {})
        unit = "s" if self.beside else row["unit"]
        beside = {"cpu": figures.get("cpu"), **figures.get("percentiles", {})}
        value = beside.get(self.beside) if self.beside else figures.get("median")
        return wording.UNKNOWN if value is None else wording.figure(value, unit)

    def _row(self, told: Told) -> Told:
        return next(row for row in told["rows"] if row["name"] == self.row)

    def _measured(self, told: Told) -> Told:
        row = self._row(told)
        return row if self.beside is None else (row.get("beside") or {}).get(self.beside) or {}


AIMS = (
    Aim("latency", "1 connection, p50", 0.80),
    Aim("latency", "its CPU per request", 0.80, beside="cpu"),
    Aim("latency", "its p99", 0.80, beside="p99"),
    Aim("parallel", "16 connections", 1.28, at_least=True),
    Aim("connect", "new connection, p50", 0.82),
    Aim("bodies", "1 MB bodies", 1.65, at_least=True),
    Aim("bulk", "16 MB bodies", 1.55, at_least=True),
    Aim("up", "raw TCP, up", 1.7, at_least=True),
    Aim("down", "raw TCP, down", 1.5, at_least=True),
    Aim("unread", "let in by a receiver that does not read", 1.0),
    Aim("mixed", "16 connections beside a transfer, p99", 1.0),
)
NOISE = Aim("rules-rules", "", 1.0)


def main() -> int:
    """Measure, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    asked = parser.parse_args()
    found = [measured(legs, asked.rounds) for legs in PROFILES]
    if not all(found):
        return 3
    text = table(*found)
    print(text)  # noqa: T201
    if asked.write:
        before, _, rest = DOCUMENT.read_text().partition(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}")
    return 1 if any(row["verdict"] == "loss" for told in found for row in told["rows"]) else 0


def measured(legs: str, rounds: int) -> Told:
    """Return what `merlab bench` measured of all rows; empty if it failed, and then say why."""
    rows = ",".join(dict.fromkeys(aim.row for aim in AIMS))
    # The samples of --full are long enough for the p99 of each row that has one; they also are taken without sidecars.
    words = ["bench", "--lab", "embedded", "--full", "--rows", rows, "--rounds", str(rounds), "--legs", legs, "--json"]
    merlab = Path(sys.executable).with_name("merlab")
    done = subprocess.run([str(merlab), *words], check=False, stdout=subprocess.PIPE, text=True)
    told: Told = json.loads(done.stdout) if done.stdout.strip() else {}
    if "rows" in told:
        return told
    why, hint = (told.get(key) or "–" for key in ("cause", "hint"))  # noqa: RUF001
    print(f"merlab bench --legs {legs} failed: {why}; try: {hint}", file=sys.stderr)  # noqa: T201
    return {}


def table(everything: Told, safe: Told) -> str:
    """Return the table as Markdown, below a line about the machine and its noise."""
    machine = everything["machine"]
    kernel = machine["kernel"].partition("-")[0]
    others = " and ".join(f"{told['outside_load']:.1%}" for told in (everything, safe))
    noise = " and ".join(NOISE.found(told) for told in (everything, safe))
    today = dt.datetime.now(tz=dt.timezone.utc).date()
    columns = [
        (
            aim.what,
            aim.figure(everything, "direct"),
            aim.figure(everything, "rules"),
            aim.figure(everything, "ebpf"),
            aim.found(everything),
            aim.shown(),
            aim.verdict(everything),
            aim.found(safe),
        )
        for aim in AIMS
    ]
    lines = [
        f"{today}, Linux {kernel}, {machine['cores']} processors ({machine['cpu']}), mutual TLS.",
        f"Other processes used {others} of all cores; the rules against themselves: {noise}.",
        "",
        "| row | without sidecars | by the rules | by eBPF | ratio, legs `all` | aim | | ratio, legs `safe` |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(each)} |" for each in columns),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
