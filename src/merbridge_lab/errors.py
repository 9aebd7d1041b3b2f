"""The errors a user sees, each with what to type next."""

from __future__ import annotations


class LabError(Exception):
    """Something outside merlab is in the way; shown without a traceback, exit status 3.

    `what` is one sentence naming what is wrong and where; `hint` the next command to type or thing to do;
    `command` and `stderr` belong to the command that failed, where there was one.
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
    """A name that merlab does not know was given, by an option or in the environment: exit status 2."""


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
    """The machine has run out of something, or may not be written to; the hint shows of what."""


class ClaimFailedError(Exception):
    """An act ran into the claim itself failing: a step that did not hold, exit status 1."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause
