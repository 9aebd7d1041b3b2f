"""The errors that a user sees, each with the next command to type."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from merbridge_lab import error_ids

if TYPE_CHECKING:
    from merbridge_lab.error_ids import ErrorId


class LabError(Exception):
    """Something outside merlab failed or is missing. Shown without a traceback; exit status 3.

    `what` is one sentence: what is wrong, and where. `hint` is the next command to type or thing to do. `command` and
    `stderr` belong to the command that failed, if there was one. `id` names the section of docs/troubleshooting.md that
    explains the error; a subclass may have a default.
    """

    default_id: ClassVar[ErrorId] = "internal"

    def __init__(
        self,
        what: str,
        hint: str | None = None,
        command: str | None = None,
        stderr: str | None = None,
        *,
        id: ErrorId | None = None,  # noqa: A002 - as the JSON names it
    ) -> None:
        super().__init__(what)
        self.id: ErrorId = id or self.default_id
        self.what = what
        self.hint = hint
        self.command = command
        self.stderr = stderr

    @property
    def see(self) -> str:
        """Return the link to the section that explains the error."""
        return error_ids.see(self.id)


class UsageError(LabError):
    """An option or the environment gave a name that merlab does not know: exit status 2."""

    default_id = "usage"


class UnsupportedFeatureError(LabError):
    """This kernel lacks a feature; `feature` names it, `since` is the first version that has it."""

    default_id = "requirement.missing"

    def __init__(self, feature: str, since: str, detail: str | None = None) -> None:
        super().__init__(
            f"this kernel cannot do {feature}" + (f" ({detail})" if detail else ""),
            hint=f"use Linux {since} or newer with that feature built in",
        )
        self.feature = feature
        self.since = since


class ShortageError(LabError):
    """The machine has run out of a resource, or a file system is read-only; the hint shows which."""

    default_id = "machine.full"


class ClaimFailedError(Exception):
    """The act of a step failed because its claim does not hold: the step fails, exit status 1."""

    id: ClassVar[ErrorId] = "lab.disturbed"

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause
