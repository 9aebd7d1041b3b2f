"""Exit statuses that scripts rely on."""

from __future__ import annotations

from merbridge_lab.evidence import Verdict

HELD = 0
NOT_HELD = 1
USAGE = 2
CANNOT = 3
DEFECT = 4
#: Added to the number of the signal that ended a run, as a shell does.
SIGNALLED = 128


def of(verdict: Verdict) -> int:
    """Return the exit status of a run."""
    return {Verdict.PASS: HELD, Verdict.FAIL: NOT_HELD}.get(verdict, CANNOT)
