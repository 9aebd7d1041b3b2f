"""A requirement: what was looked for, what was found, and what to type where it is missing."""

from __future__ import annotations

from dataclasses import dataclass

PASS = "pass"  # noqa: S105
#: Missing, but one can do without: something is less well shown, or was never tried on such a machine.
WARN = "warn"
FAIL = "fail"
#: Could not be looked at.
SKIP = "skip"


@dataclass(frozen=True)
class Requirement:
    """One line of `merlab doctor`; the fields are those of its JSON (cli.md).

    `verdict` is pass, warn, fail or skip; `hint` is the one command, or thing to do, that mends it.
    """

    name: str
    verdict: str
    found: str
    needed: str
    hint: str | None = None
