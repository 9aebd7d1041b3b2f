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

from tests.guests import inside, inside_kind, kernels_table
from tests.guests.distribution import FROM_NOTHING, Distribution
from tests.guests.kernels_table import GUESTS, Guest
from tests.guests.kind_lab import KindLab
from tests.machines.userland import UBUNTU

from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def main() -> int:
    """Go through the guests that are asked for, or all, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.guests.soak", description=__doc__)
    booted = {guest.name: guest for guest in GUESTS}
    parser.add_argument("guests", nargs="*", choices=[*booted, []], metavar="GUEST", help=", ".join(booted))
    every = dict.fromkeys((*inside.PHASES, *inside_kind.PHASES))
    parser.add_argument("--phases", default="", help=f"with commas; by default all of a guest's: {', '.join(every)}")
    parser.add_argument("--no-record", action="store_true", help="only look, and write nothing")
    asked = parser.parse_args()
    # What was made for a guest is removed, also if a time limit ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    phases = asked.phases.split(",") if asked.phases else []
    if unknown := set(phases) - set(every):
        parser.error(f"no phase is called {', '.join(sorted(unknown))}: {', '.join(every)}")
    statuses = [_go_through(booted[name], phases, record=not asked.no_record) for name in asked.guests or booted]
    return max(statuses)


def _go_through(guest: Guest, phases: Sequence[str], *, record: bool) -> int:
    """Go through phases, or all, and record each as it ends; return 1 if one did not hold, or if a boot did not end."""
    failed: list[str] = []

    def hear(kernel: str, phase: dict[str, Any]) -> None:
        if not phase["held"]:
            failed.append(phase["phase"])
        how = "holds" if phase["held"] else phase.get("said")
        _note(f"{guest.name} ({kernel}): {phase['phase']}: {how} ({phase['seconds']:.0f} s)")
        if record:
            kernels_table.record(guest.name, kernel, phase, f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}")

    machine = KindLab(guest.kernel) if guest.kind else Distribution(guest.release, guest.kernel)
    for names in _boots(phases, guest):
        try:
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


def _boots(asked: Sequence[str], guest: Guest) -> Iterator[list[str]]:
    """Yield the phases of each boot: a bare machine is one of its own, and smoke tests are done there.

    scripts/offline makes a folder for releases of this machine's distribution only: Ubuntu has none here.
    """
    if guest.kind:
        yield list(asked or inside_kind.PHASES)
        return
    but = {"refused"} | ({FROM_NOTHING} if guest.release in UBUNTU else set())
    usual = [name for name in inside.PHASES if name not in but]
    names = list(asked or (["machine", "refused"] if guest.refused else usual))
    bare = [FROM_NOTHING, "smoke"] if FROM_NOTHING in names else []
    for boot in ([name for name in names if name not in bare], [name for name in names if name in bare]):
        if boot:
            yield boot


def _note(said: str) -> None:
    sys.stderr.write(f"{said}\n")


if __name__ == "__main__":
    sys.exit(main())
