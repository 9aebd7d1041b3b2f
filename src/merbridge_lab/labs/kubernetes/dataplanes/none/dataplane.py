"""The component of a lab without a dataplane."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab import hints
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from merbridge_lab.evidence import Reading


def why(capability: str) -> str:
    """Describe in one sentence why a capability is missing."""
    return f"this lab has no {capability} (--dataplane none): only the rules intercept"


WHY = why("dataplane")


class NoDataplane:
    """The missing component of the lab: `remove` and switching off succeed, everything else reports its absence."""

    roles: tuple[str, ...] = ()
    attached = False
    debug = False

    def ensure(self) -> None:
        """Raise LabError: there is nothing to create."""
        raise LabError(WHY, hint=hints.WITHOUT_CLUSTER, id="dataplane.none")

    def remove(self) -> None:
        """Remove nothing."""

    def problems(self) -> list[str]:
        """Return the one problem: there is no dataplane."""
        return [WHY]

    def readings(self) -> tuple[Reading, ...]:
        """Return nothing."""
        return ()

    def shell_commands(self) -> list[str]:
        """Return nothing."""
        return []

    def set_debug(self, *, on: bool) -> None:
        """Do nothing to switch it off; raise LabError to switch it on."""
        if on:
            raise LabError(WHY, hint=hints.WITHOUT_CLUSTER, id="dataplane.none")

    def debug_commands(self) -> list[str]:
        """Return nothing."""
        return []

    def debug_shown(self) -> str:
        """Return nothing."""
        return ""
