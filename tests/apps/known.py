"""The cells that are known to be worse by eBPF, from known_worse.yaml, and whether a run agrees with them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from tests.apps import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.apps.cells import Row

    #: (app, case) → how
    Cells = Mapping[tuple[str, str], str]

FILE = Path(__file__).with_name("known_worse.yaml")
DOCUMENT = Path(__file__).parents[2] / "docs" / "limits.md"
HEAD = """\
# The cells of `make test-apps` that are worse by eBPF than by the rules alone, by the legs that are redirected.
# always: in every run, and a run in which one is right fails, too. sometimes: not in every run; with
# readers of these kinds, also cases that were not seen to be worse, where it depends on the moment alone.
# Written by `python -m tests.apps --rounds 3 --write-known`, which writes the table in docs/limits.md as well.
"""
#: In the file: a cell that is worse in each run, or in some.
ALWAYS, SOMETIMES = "always", "sometimes"
PROFILES = ("all", "safe")


def read(profile: str) -> dict[tuple[str, str], str]:
    """Return the known cells of a profile of legs: (app, case) → "always" or "sometimes"."""
    told = yaml.safe_load(FILE.read_text())[profile] or {}
    return {(app, case): how for app, hows in told.items() for how, cases in hows.items() for case in cases}


def write(profile: str, cells: Cells) -> None:
    """Write the known cells of a profile, here and in docs/limits.md; the others stay as they are."""
    told = {each: _tree(cells if each == profile else read(each)) for each in PROFILES}
    FILE.write_text(HEAD + yaml.safe_dump(told, sort_keys=False, width=120, default_flow_style=None))
    text = DOCUMENT.read_text()
    for each in PROFILES:
        before, begins, rest = text.partition(f"<!-- apps: {each} -->\n")
        _, ends, after = rest.partition("<!-- end -->\n")
        text = before + begins + markdown(each) + ends + after
    DOCUMENT.write_text(text)


def _tree(cells: Cells) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for app in catalogue.APPS:
        hows = defaultdict(list)
        for case in (*app.cases, catalogue.LAST):
            if how := cells.get((app.name, case)):
                hows[how].append(case)
        if hows:
            found[app.name] = {how: hows[how] for how in (ALWAYS, SOMETIMES) if how in hows}
    return found


def markdown(profile: str) -> str:
    """Return the known cells as the table of docs/limits.md."""
    if not read(profile):
        return "None.\n"
    lines = ["| app | worse in every run | worse in some runs, or may be |", "|---|---|---|"]
    whole = {app.name: [*app.cases] for app in catalogue.APPS}
    for app, hows in _tree(read(profile)).items():
        columns = []
        for how in (ALWAYS, SOMETIMES):
            cases = hows.get(how, [])
            columns.append("every case" if set(whole[app]) <= set(cases) else ", ".join(cases) or "none")
        lines.append(f"| {app} | {columns[0]} | {columns[1]} |")
    return "\n".join(lines) + "\n"


def learn(rounds: Sequence[Iterable[Row]]) -> dict[tuple[str, str], str]:
    """Return which cells were worse in all of several rounds, and which in some."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for rows in rounds:
        for row in rows:
            for case in row.worse():
                counts[row.app, case] += 1
    return {cell: ALWAYS if count == len(rounds) else SOMETIMES for cell, count in counts.items()}


@dataclass
class Verdict:
    """How a run differs from what is known."""

    new: list[tuple[str, str, str]] = field(default_factory=list)
    known: list[tuple[str, str]] = field(default_factory=list)
    better: list[tuple[str, str]] = field(default_factory=list)
    #: Sentences about what makes the run no proof: a lab that was not by eBPF, an app that did not start.
    unproved: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Report whether the worse cells are exactly the known ones, and everything was seen."""
        return not (self.new or self.better or self.unproved)


def judge(rows: Iterable[Row], known: Cells, unproved: Sequence[str] = ()) -> Verdict:
    """Compare a run with what is known."""
    verdict = Verdict(unproved=list(unproved))
    for row in rows:
        worse = row.worse()
        for case, how in worse.items():
            if (row.app, case) in known:
                verdict.known.append((row.app, case))
            else:
                verdict.new.append((row.app, case, how))
        for (app, case), how in known.items():
            reference, seen = row.cell("rules", case), row.cell("ebpf", case)
            if app == row.app and how == ALWAYS and reference and seen and reference.is_right and seen.is_right:
                verdict.better.append((app, case))
    return verdict
