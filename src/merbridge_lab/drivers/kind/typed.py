"""What a person types for a workload: its request, the way into its pod, what is done to its rules there.

None of it asks the cluster: what only that knows is given, or a word stands for it (see paper).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from merbridge_lab.adapters import docker
from merbridge_lab.adapters.proc import pasteable
from merbridge_lab.drivers.kind import layout, tables
from merbridge_lab.drivers.kind.inside import CTR
from merbridge_lab.lab import HELLO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.drivers.kind.hands import Hands
    from merbridge_lab.drivers.kind.layout import WorkloadSpec

#: As many characters of a container's id as tell it from others.
_SHORT = 12


class Process(Protocol):
    """A process of a pod: its PID on the node, and that by which one enters there."""

    @property
    def hands(self) -> Hands:
        """By what it is entered."""

    @property
    def pid(self) -> int | str:
        """Its PID, or the word for it."""


def inside(process: Process, *argv: str) -> str:
    """Give the command with which a person does something in its network namespace."""
    return process.hands.typed(["nsenter", "-t", str(process.pid), "-n", *argv])


def shell(process: Process, text: str, *, before: str = "") -> str:
    """Give a command of a person's that reads from or writes to a file on the node, which needs `before`."""
    return process.hands.typed(["sh", "-c", f"{before}nsenter -t {process.pid} -n {text}"])


def request(spec: WorkloadSpec) -> str:
    """Give the walkthrough's request, as one types it here."""
    asked = ["curl", "-s", HELLO.removeprefix("http://")]
    return pasteable(
        ["kubectl", "--context", layout.CONTEXT, "exec", f"deploy/{spec.name}", "-c", spec.container, "--", *asked]
    )


def enter(process: Process, container: str) -> list[str]:
    """Give the command that finds the process by its container's id, and the one that looks around in its namespace."""
    tasks = pasteable(docker.exec_argv(process.hands.node, [*CTR, "tasks", "ls"]))
    return [f"{tasks} | grep {container[:_SHORT]}", inside(process, "ip", "-o", "-4", "address", "show")]


def trace(node: str) -> str:
    """Give the command that reads the trace on the node."""
    return pasteable(docker.exec_argv(node, ["cat", "/sys/kernel/tracing/trace_pipe"]))


class Rules(ABC):
    """The commands for the nat rules of the workload `name`; which tables, and where, says who has them."""

    def __init__(self, name: str) -> None:
        #: A copy for a person to look at.
        self.copied_at = f"{layout.STATE}/{name}.rules"

    @property
    @abstractmethod
    def backend(self) -> str:
        """In which tables the rules are."""

    @property
    @abstractmethod
    def process(self) -> Process:
        """The process whose network namespace they are in."""

    def save_command(self) -> str:
        """Give the command that saves the rules with their counters."""
        save = f"{tables.commands(self.backend).save} > {self.copied_at}"
        return shell(self.process, save, before=f"mkdir -p {layout.STATE} && ")

    def flush_command(self) -> str:
        """Give the command that flushes nat."""
        return inside(self.process, *tables.commands(self.backend).flush)

    def restore_command(self) -> str:
        """Give the command that puts the saved rules back."""
        return shell(self.process, f"{tables.commands(self.backend).load} < {self.copied_at}")

    def list_command(self, chain: str = "") -> str:
        """Give the command that lists the nat rules, or those of one chain, with their counters."""
        return inside(self.process, *self.list_argv(chain))

    def list_argv(self, chain: str) -> Sequence[str]:
        """Give that command as it is typed in the namespace."""
        known = tables.commands(self.backend)
        return [*known.list_chain, tables.chain_name(self.backend, chain)] if chain else known.list_all
