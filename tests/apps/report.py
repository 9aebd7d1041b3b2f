"""Show a run: a table of apps and cases, by the rules and by eBPF side by side; or JSON."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text
from tests.apps import catalogue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from tests.apps.cells import Cell, Row
    from tests.apps.known import Verdict

_MARKS = {"ok": "✔", "wrong": "✘", "stalled": "…"}


def _mark(cell: Cell | None) -> str:
    return _MARKS[cell.outcome] if cell else " "


def _pair(row: Row, case: str) -> Text:
    reference, seen = row.cell("rules", case), row.cell("ebpf", case)
    style = "bold red" if case in row.worse() else "dim" if not (reference and reference.is_right) else "green"
    return Text(f"{_mark(reference)}{_mark(seen)}", style=style)


def table(rows: Sequence[Row]) -> Table:
    """Return the table; each cell has two marks: by the rules, by eBPF."""
    cases = [case for case in catalogue.COLUMNS if any(row.cell("rules", case) for row in rows)]
    made = Table(title=f"By the rules and by eBPF, Linux {os.uname().release}", pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("app", no_wrap=True)
    for case in cases:
        made.add_column(case.replace("-", "\n"), justify="center")
    for row in rows:
        made.add_row(row.app, *(_pair(row, case) for case in cases))
    return made


def show(console: Console, rows: Sequence[Row], verdict: Verdict, seconds: float) -> None:
    """Print the table, and what is not as it is known to be."""
    console.print(table(rows))
    console.print("two marks a cell: by the rules, by eBPF;  ✔ right  ✘ wrong  … stalled", style="dim", markup=False)
    for row in rows:
        if row.not_run:
            console.print(f"not run: {row.app}: {row.not_run}", markup=False)
        for case, how in row.worse().items():
            known = "known" if (row.app, case) in verdict.known else "NEW"
            console.print(f"worse ({known}): {row.app} · {case}: {how}", markup=False, highlight=False)
    for app, case in verdict.better:
        console.print(f"better than known: {app} · {case}", markup=False, highlight=False)
    for sentence in verdict.unproved:
        console.print(f"not proved: {sentence}", style="bold red", markup=False)
    total = told(rows, verdict, seconds)["total"]
    console.print(
        f"{total['right_by_rules']} of {total['cells']} cells right by the rules; {total['worse']} of these worse "
        f"by eBPF ({len(verdict.new)} new, {len(verdict.better)} better than known), in {seconds:.0f} s",
        style="bold",
        highlight=False,
    )


def told(rows: Sequence[Row], verdict: Verdict, seconds: float) -> dict[str, Any]:
    """Return a run for JSON."""
    references = [cell for row in rows if "rules" in row.results for cell in row.results["rules"].cells.values()]
    return {
        "schema": 1,
        "kernel": os.uname().release,
        "seconds": round(seconds, 1),
        "held": verdict.held,
        "new": [{"app": app, "case": case, "how": how} for app, case, how in verdict.new],
        "known": [{"app": app, "case": case} for app, case in verdict.known],
        "better": [{"app": app, "case": case} for app, case in verdict.better],
        "unproved": verdict.unproved,
        "total": {
            "cells": len(references),
            "right_by_rules": sum(cell.is_right for cell in references),
            "worse": sum(len(row.worse()) for row in rows),
        },
        "apps": [row.told() for row in rows],
    }
