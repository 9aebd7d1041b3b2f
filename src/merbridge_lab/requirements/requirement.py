"""A requirement: what was checked, what was found, and what to type if it is missing."""

from __future__ import annotations

from dataclasses import dataclass

PASS = "pass"  # noqa: S105
#: Missing, but optional: something is shown in less detail, or was never tried on such a machine.
WARN = "warn"
FAIL = "fail"
#: Could not be checked.
SKIP = "skip"


@dataclass(frozen=True)
class Requirement:
    """One line of `merlab doctor`; the fields are those of its JSON (cli.md).

    `verdict` is pass, warn, fail or skip; `hint` is the one command, or thing to do, that fixes it.
    """

    name: str
    verdict: str
    found: str
    needed: str
    hint: str | None = None
