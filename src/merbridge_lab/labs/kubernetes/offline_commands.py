"""What the commands of steps name of a lab when no lab exists; nothing can be done with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab.labs.kubernetes import commands, topology
from merbridge_lab.labs.kubernetes.node_exec import DockerNodeExec

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.lab import Component, Dataplane
    from merbridge_lab.labs.kubernetes.node_exec import NodeExec
    from merbridge_lab.labs.kubernetes.topology import WorkloadSpec

#: Placeholders for what only a running lab has: the id of an app's container, and the app's PID on the node.
CONTAINER, PID = "CONTAINER", "PID"


@dataclass(frozen=True)
class _Process:
    node_exec: NodeExec
    pid: str = PID


#: kind's own node images have the tools; a helper is for others.
_PROCESS = _Process(DockerNodeExec(topology.NODE))


class _Rules(commands.Rules):
    backend = "nft"  # as for rules that do not exist yet: see rules.PodRules
    process = _PROCESS


class _Workload:
    def __init__(self, spec: WorkloadSpec) -> None:
        self._spec = spec
        self.rules = _Rules(spec.name)

    def request_command(self, *, without_ebpf: bool = False) -> str:
        return commands.request_without_ebpf(self._spec) if without_ebpf else commands.request(self._spec)

    def enter_commands(self) -> list[str]:
        return commands.enter(_PROCESS, CONTAINER)


class OfflineCommands:
    """The part of the Lab protocol that the steps' `commands` use; `words` are placeholders for unknown values."""

    words: tuple[str, ...] = (CONTAINER, PID)

    def __init__(
        self, node: Component, mesh: Component, dataplane: Dataplane, inventory_commands: Callable[[], list[str]]
    ) -> None:
        self.node, self.mesh, self.dataplane = node, mesh, dataplane
        self.inventory_commands = inventory_commands

    def workload(self, name: str) -> _Workload:
        """Return a workload of the walkthrough."""
        return _Workload(next(spec for spec in topology.WORKLOADS if spec.name == name))

    def trace_command(self) -> str:
        """Return the walkthrough's command, on the node."""
        return commands.trace(topology.NODE)
