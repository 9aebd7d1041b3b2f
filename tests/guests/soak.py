"""Go through all guests, record what they do, and write the tables of docs/kernels.md: `make soak-machines`.

`python -m tests.guests.soak [--phases A,B] [--no-record] [GUEST …]`; the guests are those of kernels_table.py. What is
seen is recorded phase by phase: a run that is ended keeps what it saw. The exit status is 1 if anything did not hold.
"""

from __future__ import annotations

import argparse
import datetime as dt
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.guests import kernels_table
from tests.guests.distribution import Distribution
from tests.guests.kernels_table import GUESTS, Guest
from tests.guests.kind_lab import KindLab

from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main() -> int:
    """Go through the guests that are asked for, or all, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.guests.soak", description=__doc__)
    booted = {guest.name: guest for guest in GUESTS if guest.kernel}
    parser.add_argument("guests", nargs="*", choices=[*booted, []], metavar="GUEST", help=", ".join(booted))
    parser.add_argument("--phases", default="", help="with commas, as inside.py has them, or inside_kind.py; else all")
    parser.add_argument("--no-record", action="store_true", help="only look, and write nothing")
    asked = parser.parse_args()
    # What was made for a guest is removed, also if a time limit ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    phases = asked.phases.split(",") if asked.phases else []
    statuses = [_go_through(booted[name], phases, record=not asked.no_record) for name in asked.guests or booted]
    return max(statuses)


def _go_through(guest: Guest, phases: Sequence[str], *, record: bool) -> int:
    """Boot a guest and record each phase as it ends; return 1 if one did not hold, or if it did not end."""
    failed: list[str] = []

    def hear(kernel: str, phase: dict[str, Any]) -> None:
        if not phase["held"]:
            failed.append(phase["phase"])
        how = "holds" if phase["held"] else phase.get("said")
        _note(f"{guest.name} ({kernel}): {phase['phase']}: {how} ({phase['seconds']:.0f} s)")
        if record:
            kernels_table.record(guest.name, kernel, phase, f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}")

    names = phases or (["machine", "refused"] if guest.refused else [])
    try:
        kernel = str(guest.kernel)
        machine = KindLab(kernel) if guest.kind else Distribution(str(guest.release), kernel)
        status = machine.run(names, hear)
    except (LabError, subprocess.SubprocessError, RuntimeError) as error:
        failed.append(str(error))
        _note(f"{guest.name}: {error}\n{getattr(error, 'stderr', '') or ''}")
    else:
        if status and not failed:
            _note(f"{guest.name}: ended with {status}, without a word")
            failed.append("the end")
    if record:
        kernels_table.write()
    return 1 if failed else 0


def _note(said: str) -> None:
    sys.stderr.write(f"{said}\n")


if __name__ == "__main__":
    sys.exit(main())
