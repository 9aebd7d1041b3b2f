"""The lab on paper: what the commands of its steps name, told before there is a lab. Nothing can be done with it."""

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

#: Words for what only a lab that is up has: the id of an app's container, and the app's PID on the node.
CONTAINER, PID = "CONTAINER", "PID"


@dataclass(frozen=True)
class _Process:
    node_exec: NodeExec
    pid: str = PID


#: kind's own node images have the tools; a helper is for others.
_PROCESS = _Process(DockerNodeExec(topology.NODE))


class _Rules(commands.Rules):
    backend = "nft"  # as with rules that are not there yet: see rules.PodRules
    process = _PROCESS


class _Workload:
    def __init__(self, spec: WorkloadSpec) -> None:
        self._spec = spec
        self.rules = _Rules(spec.name)

    def request_command(self) -> str:
        return commands.request(self._spec)

    def enter_commands(self) -> list[str]:
        return commands.enter(_PROCESS, CONTAINER)


class OfflineCommands:
    """Of the Lab protocol what the steps' `commands` use; `words` are in them for what is not known yet."""

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
