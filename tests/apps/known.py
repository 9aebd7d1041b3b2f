"""The cells that are known to be worse by eBPF, from known_worse.yaml, and whether a run agrees with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.apps.cells import Row

FILE = Path(__file__).with_name("known_worse.yaml")
#: In the file: a cell that is worse in each run, or in some.
ALWAYS, SOMETIMES = "always", "sometimes"


def listed(profile: str) -> dict[tuple[str, str], str]:
    """Return the known cells of a profile of legs: (app, case) → "always" or "sometimes"."""
    told = yaml.safe_load(FILE.read_text())[profile] or {}
    return {(app, case): how for app, hows in told.items() for how, cases in hows.items() for case in cases}


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


def judge(rows: Iterable[Row], profile: str, unproved: Sequence[str] = ()) -> Verdict:
    """Compare a run with what is known."""
    known, verdict = listed(profile), Verdict(unproved=list(unproved))
    for row in rows:
        worse = row.worse()
        for case, how in worse.items():
            if (row.app, case) in known:
                verdict.known.append((row.app, case))
            else:
                verdict.new.append((row.app, case, how))
        for (app, case), how in known.items():
            seen = row.cell("ebpf", case)
            if app == row.app and how == ALWAYS and seen and case not in worse:
                verdict.better.append((app, case))
    return verdict
