"""The common part of all kinds of labs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab.command_events import (
    CommandBegins,
    CommandEnds,
    CommandEvent,
    CommandTranscript,
    ProofNeeds,
    RunningCommand,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from merbridge_lab.lab import Workload
    from merbridge_lab.ruleset import RuleSet


def _ignore(event: CommandEvent) -> None:
    """Do nothing with an event."""


class LabBase:
    """The part of the Lab protocol that is the same for every kind of lab."""

    def __init__(self, *, keeps_flushed: bool = False) -> None:
        self._keeps_flushed = keeps_flushed
        self._shown: list[CommandTranscript] = []
        self._listener: Callable[[CommandEvent], None] = _ignore

    @contextlib.contextmanager
    def flushed(self, workloads: Sequence[Workload]) -> Iterator[dict[str, RuleSet]]:
        """Save and flush nat in all of `workloads` for the duration of the block."""
        with contextlib.ExitStack() as stack:
            yield {workload.name: stack.enter_context(workload.rules.flushed()) for workload in workloads}

    # -- what a person would type -----------------------------------------------------------------------------------

    def listen(self, listener: Callable[[CommandEvent], None]) -> None:
        """Send each command event to `listener` from now on, while it happens."""
        self._listener = listener

    @contextlib.contextmanager
    def typing(self, *commands: str) -> Iterator[RunningCommand]:
        """Show commands that a person would type, and run the block for them; see lab.Lab."""
        commands = self._with_context(commands)
        running = RunningCommand(self._listener)
        self._listener(CommandBegins(commands))
        yield running
        self._end(commands, running.output)

    @contextlib.contextmanager
    def flushing(self, workload: Workload) -> Iterator[RuleSet]:
        """Flush nat for the duration of the block, and show the commands for it; see lab.Lab."""
        rules = workload.rules
        with contextlib.ExitStack() as until_restored:
            with self.typing(rules.flush_command()) as typed:
                saved = until_restored.enter_context(rules.flushed())
                typed.notice(f"nat rules of {workload.name}: {saved.nat_count} → {rules.snapshot().nat_count}")
            yield saved
            if self._keeps_flushed:
                return
            with self.typing(rules.restore_command()) as typed:
                until_restored.close()
                typed.notice(f"nat rules of {workload.name}: {rules.snapshot().nat_count}")

    def show(self, command: str, output: str = "") -> None:
        """Record a command that a person would type, with its output."""
        with self.typing(command) as typed:
            typed.prints(output)

    def show_again(self, commands: Sequence[str]) -> None:
        """Show commands whose result exists already; nothing runs."""
        self._listener(CommandBegins(tuple(commands), runs=False))
        self._listener(CommandEnds(tuple(commands)))

    def needs_for_proof(self, what: str) -> None:
        """Report in one line what runs that nobody would type."""
        self._listener(ProofNeeds(what))

    def _with_context(self, commands: tuple[str, ...]) -> tuple[str, ...]:
        """Return the commands, with those before them that a shell needs first; a lab on a cluster has some."""
        return commands

    def _end(self, commands: tuple[str, ...], output: str) -> None:
        *earlier, last = commands
        self._shown += [CommandTranscript(each) for each in earlier]
        self._shown.append(CommandTranscript(last, output))
        self._listener(CommandEnds(commands, output))

    def shown(self) -> Sequence[CommandTranscript]:
        """Return what was recorded since the last call, and clear it."""
        taken, self._shown = self._shown, []
        return taken
