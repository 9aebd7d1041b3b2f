"""A requirement: what was checked, what was found, and what to type if it is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab.adapters import system_tools
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from merbridge_lab.error_ids import ErrorId

PASS = "pass"  # noqa: S105
#: Missing, but optional: something is shown in less detail, or was never tried on such a machine.
WARN = "warn"
FAIL = "fail"
#: Could not be checked.
SKIP = "skip"
#: The errors that have a section of their own.
_SECTIONS: dict[str, ErrorId] = {
    "bcc": "bcc.missing",
    "cluster.name": "cluster.foreign",
    "docker.answers": "docker.unreachable",
    "docker.disk": "machine.full",
    "envoy": "envoy.missing",
    "memory": "machine.full",
    "merbridge.alone": "merbridge.foreign",
    "merbridge.image": "merbridge.no_image",
    "root": "root.needed",
}


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

    def error(self) -> LabError:
        """Return the error for a machine that does not meet the requirement."""
        what = f"{self.name}: found {self.found}, needed {self.needed}"
        return LabError(what, hint=self.hint, id=_SECTIONS.get(self.name, "requirement.missing"))


def unless_found(name: str, needed: str, *tools: str) -> Requirement | None:
    """Return the requirement as not checked if a tool that checks it is missing: the tool has a line of its own."""
    missing = next((tool for tool in tools if system_tools.find(tool) is None), None)
    return Requirement(name, SKIP, f"not checked: this requires {missing}", needed) if missing else None
