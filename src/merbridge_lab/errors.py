"""The errors that a user sees, each with the next command to type."""

from __future__ import annotations


class LabError(Exception):
    """Something outside merlab failed or is missing. Shown without a traceback; exit status 3.

    `what` is one sentence: what is wrong, and where. `hint` is the next command to type or thing to do. `command` and
    `stderr` belong to the command that failed, if there was one.
    """

    def __init__(
        self, what: str, hint: str | None = None, command: str | None = None, stderr: str | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.command = command
        self.stderr = stderr


class UsageError(LabError):
    """An option or the environment gave a name that merlab does not know: exit status 2."""


class UnsupportedFeatureError(LabError):
    """This kernel lacks a feature; `feature` names it, `since` is the first version that has it."""

    def __init__(self, feature: str, since: str, detail: str | None = None) -> None:
        super().__init__(
            f"this kernel cannot do {feature}" + (f" ({detail})" if detail else ""),
            hint=f"use Linux {since} or newer with that feature built in",
        )
        self.feature = feature
        self.since = since


class ShortageError(LabError):
    """The machine has run out of a resource, or a file system is read-only; the hint shows which."""


class ClaimFailedError(Exception):
    """The act of a step failed because its claim does not hold: the step fails, exit status 1."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause
