"""Real programs as the apps of pods, by eBPF and by the rules alone, side by side: `python -m tests.apps`, or make test-apps."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

from tests.apps import lab_command

lab_command.add_services()  # before anything else of the embedded lab is imported

from tests.apps import catalogue, cells, known, kit, report, two_labs  # noqa: E402


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.apps", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="a choice of cells, in less than a minute")
    parser.add_argument("--app", action="append", default=[], help="only apps whose name contains this (repeatable)")
    parser.add_argument("--case", action="append", default=[], choices=catalogue.COLUMNS, help="only these cases")
    parser.add_argument("--up", action="append", default=[], metavar="OPTION", help="an option for merlab up (eBPF)")
    parser.add_argument("--known", default="all", help="the list of known_worse.yaml to compare with")
    parser.add_argument("--jobs", type=int, default=6, help="how many apps run at once (default: 6)")
    parser.add_argument("--patience", type=float, default=cells.PATIENCE, help="seconds for one case")
    parser.add_argument("--prepare", action="store_true", help="only unpack and compile the programs")
    return parser.parse_args()


def chosen(asked: argparse.Namespace) -> dict[catalogue.App, tuple[str, ...]]:
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
    apps: dict[catalogue.App, tuple[str, ...]],
    labs: dict[str, two_labs.AppsLab],
    built: kit.Kit,
    asked: argparse.Namespace,
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
    moved = {way: lab.witness().since(before[way]) for way, lab in labs.items()}
    return rows, two_labs.unproved(rows, moved)


def main() -> int:
    """Run, print, and return the exit status: 1 if anything is not as it is known to be, 3 if nothing could run."""
    asked = options()
    console = Console(stderr=asked.json, width=None if sys.stdout.isatty() else 150)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun = time.monotonic()

    def progress(text: str) -> None:
        print(f"test-apps: {text}", file=sys.stderr, flush=True)

    if os.geteuid() != 0:
        progress("needs root")
        return 3
    try:
        built = kit.ensure(progress)
        if asked.prepare:
            return 0
        progress(f"built in {time.monotonic() - begun:.0f} s; two labs come up")
        with two_labs.both(asked.up) as labs:
            rows, unproved = compare(chosen(asked), labs, built, asked)
    except (kit.CannotBuildError, two_labs.LabNotUpError) as error:
        progress(str(error))
        return 3
    verdict = known.judge(rows, asked.known, unproved)
    if asked.json:
        print(json.dumps(report.told(rows, verdict, time.monotonic() - begun)))
    else:
        report.show(console, rows, verdict, time.monotonic() - begun)
    return 0 if verdict.held else 1


if __name__ == "__main__":
    sys.exit(main())
