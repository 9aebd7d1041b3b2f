"""Node and mesh as the steps see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab import ruleset
from merbridge_lab.evidence import Reading
from merbridge_lab.labs.embedded import packet_captures, pod_count, programs, rule_templates, saved_rules, topology

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from merbridge_lab.labs.embedded.host import Machine
    from merbridge_lab.labs.embedded.mesh import Mesh
    from merbridge_lab.labs.embedded.node import Node
    from merbridge_lab.labs.embedded.workload import EmbeddedWorkload

_READY = 15.0
_GONE = 5.0


class NodeComponent:
    """The lab's place on the machine, and the node in it."""

    def __init__(self, machine: Machine, node: Node, pods: int) -> None:
        self._machine = machine
        self._node = node
        self._pods = pods

    def ensure(self) -> None:
        """Create what is missing."""
        self._machine.ensure()
        pod_count.keep(self._machine, self._pods)
        self._node.ensure()

    def remove(self) -> None:
        """Remove the node; the lab's place on the machine is removed last, by `down`."""
        self._node.remove()

    def problems(self) -> list[str]:
        """Describe what differs from what `ensure` creates."""
        return (
            self._machine.problems()
            or pod_count.problems(self._machine, self._pods)
            or self._node.problems()
            or programs.problems()
        )

    def readings(self) -> tuple[Reading, ...]:
        """Return where it is."""
        return (
            Reading("netns:node", "", None, str(self._node.netns)),
            Reading("cgroup:merlab", "", None, str(self._machine.cgroup)),
            *packet_captures.readings(topology.NODE, self._node.netns),
        )

    def shell_commands(self) -> list[str]:
        """Return the commands that a person would type to create it."""
        return [*self._machine.shell_commands(), *self._node.shell_commands()]


class MeshComponent:
    """The pods with their rules, sidecars and apps; `before` is called before anything is asked of them."""

    def __init__(
        self,
        mesh: Mesh,
        workloads: Callable[[], Sequence[EmbeddedWorkload]],
        saved: Path,
        before: Callable[[], None],
    ) -> None:
        self._before = before
        self._mesh = mesh
        self._saved = saved
        self._workloads = workloads

    def ensure(self) -> None:
        """Create what is missing; first restore rules that were flushed and saved."""
        self._before()
        for workload in self._workloads():
            if workload.exists:
                workload.rules.restore()
        self._mesh.ensure()
        self._mesh.wait_ready(_READY)

    def remove(self) -> None:
        """Stop the pods and remove them."""
        self._mesh.remove(_GONE)

    def problems(self) -> list[str]:
        """Describe what differs from what `ensure` creates."""
        broken = self.broken()  # beside the compiler, which `before` waits for
        self._before()
        if broken:
            broken = self.broken()  # an altered program may have been the cause
        found = []
        for workload in (each for each in self._workloads() if each.rules.outstanding):
            name, rules = workload.name, workload.rules
            found.append(f"the nat rules of {name} are flushed (saved in {rules.saved_at}): merlab restore")
            # A merlab that was killed before its flush leaves Istio's rules in place; any other save is somebody
            # else's.
            expected = rule_templates.pod_rules(workload.pod.spec.annotations)
            istios = {str(rule) for rule in ruleset.parse(expected)}
            if others := [spec for spec in rules.snapshot().specs("nat") if spec not in istios]:
                found.append(f"other nat rules are in {name}: {others[0]}")
        return found + broken

    def broken(self) -> list[str]:
        """Describe what differs from what `ensure` creates, except for what is flushed on purpose."""
        pods = [(pod.spec.name, pod.netns) for pod in self._mesh.pods]
        return saved_rules.problems(self._saved, pods) + self._mesh.problems()

    def readings(self) -> tuple[Reading, ...]:
        """Return the processes, and who captures packets."""
        processes = tuple(
            Reading(
                f"proc:{workload.name}", "", None, f"app {workload.pod.app_pid}, sidecar {workload.pod.sidecar_pid}"
            )
            for workload in self._workloads()
        )
        pods = self._mesh.pods
        return (*processes, *(each for pod in pods for each in packet_captures.readings(pod.spec.name, pod.netns)))

    def shell_commands(self) -> list[str]:
        """Return the commands that a person would type to create it."""
        return self._mesh.shell_commands()
