"""What the commands of steps name of a lab when no lab exists; nothing can be done with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab.labs.kubernetes import commands, topology
from merbridge_lab.labs.kubernetes.node_exec import NodeToolsExec

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.lab import Component, Dataplane
    from merbridge_lab.labs.kubernetes.node_exec import NodeExec
    from merbridge_lab.labs.kubernetes.provider import ClusterProvider, Node
    from merbridge_lab.labs.kubernetes.topology import WorkloadSpec

#: Placeholders for what only a running lab has: the id of an app's container, and the app's PID on the node.
CONTAINER, PID = "CONTAINER", "PID"


@dataclass(frozen=True)
class _Process:
    node_exec: NodeExec
    pid: str = PID


class _Rules(commands.Rules):
    backend = "nft"  # as for rules that do not exist yet: see rules.PodRules

    def __init__(self, name: str, process: _Process) -> None:
        super().__init__(name)
        self._process = process

    @property
    def process(self) -> _Process:
        return self._process


class _Workload:
    def __init__(self, spec: WorkloadSpec, process: _Process, context: str) -> None:
        self._spec, self._process, self._context = spec, process, context
        self.rules = _Rules(spec.name, process)

    def request_command(self, *, without_ebpf: bool = False) -> str:
        return (
            commands.request_without_ebpf(self._spec) if without_ebpf else commands.request(self._spec, self._context)
        )

    def enter_commands(self) -> list[str]:
        return commands.enter(self._process, CONTAINER)


class OfflineCommands:
    """The part of the Lab protocol that the steps' `commands` use; `words` are placeholders for unknown values."""

    words: tuple[str, ...] = (CONTAINER, PID)

    def __init__(
        self,
        provider: ClusterProvider,
        node: Component,
        mesh: Component,
        dataplane: Dataplane,
        inventory_commands: Callable[[], list[str]],
        trace_command: Callable[[Node], str],
    ) -> None:
        # The provider's usual nodes have the tools that enter pods; a helper is for others.
        self._process, self._context = _Process(NodeToolsExec(provider.offline_node())), provider.context
        self.node, self.mesh, self.dataplane = node, mesh, dataplane
        self.inventory_commands = inventory_commands
        self._trace_command = trace_command

    def workload(self, name: str) -> _Workload:
        """Return a workload of the walkthrough."""
        spec = next(spec for spec in topology.WORKLOADS if spec.name == name)
        return _Workload(spec, self._process, self._context)

    def trace_command(self) -> str:
        """Return the command that a person would type to read the dataplane's trace."""
        return self._trace_command(self._process.node_exec.node)
