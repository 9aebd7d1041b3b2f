"""Real programs as the apps of pods, by eBPF and by the rules alone, side by side: make test-apps.

In two embedded labs, or with --cluster in pods of the kind lab that is up (make up-kind).

The exit status is 0 if exactly the cells of known_worse.yaml are worse by eBPF than by the rules, 1 if not, and 3 if
this machine cannot.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rich.console import Console
from tests.apps import lab_command

lab_command.add_services()  # before anything else of the embedded lab is imported

from tests.apps import catalogue, cells, kit, known, place, report, two_labs  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    Apps = Mapping[catalogue.App, tuple[str, ...]]
    Labs = Mapping[str, place.Place]


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.apps", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="a choice of cells, in less than a minute")
    parser.add_argument("--app", action="append", default=[], help="only apps whose name contains this (repeatable)")
    parser.add_argument("--case", action="append", default=[], choices=catalogue.COLUMNS, help="only these cases")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--legs", choices=known.PROFILES, help="for merlab up --legs (default: not said)")
    where.add_argument("--cluster", action="store_true", help="in pods of the kind lab, whose agent has --legs safe")
    parser.add_argument("--jobs", type=int, default=6, help="how many apps run at once (default: 6)")
    parser.add_argument("--patience", type=float, help="seconds for one case")
    parser.add_argument("--rounds", type=int, default=1, help="how often all of it is run (the last one is shown)")
    parser.add_argument("--write-known", action="store_true", help="write known_worse.yaml from these rounds")
    parser.add_argument("--prepare", action="store_true", help="only unpack and compile the programs")
    return parser.parse_args()


def chosen(asked: argparse.Namespace) -> Apps:
    """Return the apps to run, with their cases."""
    found = {}
    for app in catalogue.APPS:
        if asked.app and not any(each.lower() in app.name.lower() for each in asked.app):
            continue
        cases = app.quick if asked.quick else app.cases
        if cases := tuple(case for case in cases if not asked.case or case in asked.case):
            found[app] = cases
    return found


def compare(
    apps: Apps, labs: Labs, built: kit.Kit, asked: argparse.Namespace, expected: known.Cells
) -> tuple[list[cells.Row], list[str]]:
    """Run the apps in both labs, several at once; return their rows, and sentences about what was not proved."""
    before = {way: lab.witness() for way, lab in labs.items()}
    rows = [cells.Row(app.name, not_run=app.why_not()) for app in apps]
    with ThreadPoolExecutor(asked.jobs) as pool:
        jobs = [
            (row, way, pool.submit(cells.run, app, apps[app], lab, built, asked.patience))
            for row, app in zip(rows, apps, strict=True)
            if not row.not_run
            for way, lab in labs.items()
        ]
        for row, way, job in jobs:
            row.results[way] = job.result()
    for row, app in zip(rows, apps, strict=True):
        again = [case for case in row.stalled() if (row.app, case) not in expected]
        for way, lab in labs.items():
            if again and not asked.write_known:  # alone, and with more time: a stall may be the load
                row.results[way].replace(cells.run(app, again, lab, built, 2 * asked.patience))
    moved = {way: lab.witness().since(before[way]) for way, lab in labs.items()}
    return rows, place.unproved(rows, moved)


def both_ways(asked: argparse.Namespace, built: kit.Kit) -> AbstractContextManager[Labs]:
    """Return what has the pods of both ways up during a block."""
    if not asked.cluster:
        return two_labs.both([f"--legs={asked.legs}"] if asked.legs else [])
    from tests.apps import cluster_pods  # it needs what `python -m tests.cluster env` prints

    return cluster_pods.both(built)


def main() -> int:
    """Run, print, and return the exit status."""
    asked = options()
    asked.patience = asked.patience or (cells.PATIENCE_IN_BRIEF if asked.quick else cells.PATIENCE)
    console = Console(stderr=asked.json, width=None if sys.stdout.isatty() else 150)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun = time.monotonic()

    def progress(text: str) -> None:
        print(f"test-apps: {text}", file=sys.stderr, flush=True)  # noqa: T201

    if os.geteuid() != 0:
        progress("needs root")
        return 3
    profile = asked.legs or ("safe" if asked.cluster else "all")
    expected, rounds = known.read(profile), []
    try:
        built = kit.ensure(progress)
        if asked.prepare:
            return 0
        apps = chosen(asked)
        progress(f"programs ready after {time.monotonic() - begun:.0f} s; {len(apps)} apps in two labs")
        for _ in range(asked.rounds):
            with both_ways(asked, built) as labs:
                rows, unproved = compare(apps, labs, built, asked, expected)
            rounds.append(rows)
    except (kit.CannotBuildError, place.LabNotUpError) as error:
        progress(str(error))
        return 3
    if asked.write_known:
        others = {cell: how for cell, how in expected.items() if cell[0] not in {app.name for app in apps}}
        expected = others | known.learn(rounds)
        known.write(profile, expected)
    verdict = known.judge(rows, expected, unproved)
    seconds = time.monotonic() - begun
    if asked.json:
        print(json.dumps(report.told(rows, verdict, seconds)))  # noqa: T201
    else:
        report.show(console, rows, verdict, seconds)
    return 0 if verdict.held else 1


if __name__ == "__main__":
    sys.exit(main())
