"""The common part of all kinds of labs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab.lab import CommandTranscript

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from merbridge_lab.lab import Workload
    from merbridge_lab.ruleset import RuleSet


class LabBase:
    """The part of the Lab protocol that is the same for every kind of lab."""

    def __init__(self) -> None:
        self._shown: list[CommandTranscript] = []

    @contextlib.contextmanager
    def flushed(self, workloads: Sequence[Workload]) -> Iterator[dict[str, RuleSet]]:
        """Save and flush nat in all of `workloads` for the duration of the block."""
        with contextlib.ExitStack() as stack:
            yield {workload.name: stack.enter_context(workload.rules.flushed()) for workload in workloads}

    def show(self, command: str, output: str = "") -> None:
        """Record a command that a person would type, with its output."""
        self._shown.append(CommandTranscript(command, output))

    def shown(self) -> Sequence[CommandTranscript]:
        """Return what was recorded since the last call, and clear it."""
        taken, self._shown = self._shown, []
        return taken
