"""The dataplane that is none: nothing intercepts, the rules do the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from merbridge_lab.evidence import Reading


def why(capability: str) -> str:
    """Say in one sentence why a capability is missing."""
    return f"this lab has no {capability} (--dataplane none): nothing but the rules intercepts"


WHY = why("dataplane")


class NoDataplane:
    """The part of the lab that is missing; `remove` and switching off are fine, all else says so."""

    attached = False
    debug = False

    def ensure(self) -> None:
        """There is nothing to make."""
        raise LabError(WHY, hint="merlab up --lab embedded")

    def remove(self) -> None:
        """There is nothing to remove."""

    def problems(self) -> list[str]:
        """Say that there is none."""
        return [WHY]

    def readings(self) -> tuple[Reading, ...]:
        """Return nothing."""
        return ()

    def shell_commands(self) -> list[str]:
        """Return nothing."""
        return []

    def set_debug(self, *, on: bool) -> None:
        """Switching off what is not there is fine."""
        if on:
            raise LabError(WHY, hint="merlab up --lab embedded")

    def debug_commands(self) -> list[str]:
        """Return nothing."""
        return []

    def debug_shown(self) -> str:
        """Return nothing."""
        return ""
