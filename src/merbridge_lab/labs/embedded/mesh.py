"""The pods of the walkthrough, created and checked together."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

from merbridge_lab.adapters import netns
from merbridge_lab.labs.embedded import envoy, namespace_watch, pod_count, pod_link, socket_holders, topology
from merbridge_lab.labs.embedded.pod import Pod
from merbridge_lab.polling import limit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from merbridge_lab.labs.embedded.host import Machine
    from merbridge_lab.labs.embedded.node import Node
    from merbridge_lab.labs.embedded.topology import PodSpec

__all__ = ["Mesh", "Pod"]

#: Seconds for the processes of a pod to end.
_GONE = 5.0


class Mesh:
    """All pods of `specs`; machine and node are created before it."""

    def __init__(self, machine: Machine, node: Node, specs: Sequence[PodSpec] = topology.PODS) -> None:
        self._machine = machine
        self._node = node
        self.pods = tuple(Pod(machine, node, spec) for spec in specs)

    @property
    def walkthrough(self) -> tuple[Pod, ...]:
        """The pods that the steps are about."""
        return self.pods[: topology.FEWEST_PODS]

    @property
    def replicas(self) -> tuple[Pod, ...]:
        """The others: replicas of sleep."""
        return self.pods[topology.FEWEST_PODS :]

    def pod(self, name: str) -> Pod:
        """Return a pod by name. Raises KeyError."""
        for pod in self.pods:
            if pod.spec.name == name:
                return pod
        raise KeyError(name)

    def ensure(self) -> None:
        """Create what is missing; the sidecars then start in parallel. Raises LabError, OSError."""
        self._machine.uncover()
        if any(pod.spec.sidecar for pod in self.pods):
            envoy.program(self._machine)
        for pod in self._surplus():
            pod.remove(_GONE)
        node = pod_link.read_node(self._node.netns)
        for pod in self.pods:
            pod.ensure(node)

    def wait_ready(self, timeout: float) -> None:
        """Wait until all pods are ready, at most `timeout` seconds together. Raises LabError."""
        deadline = time.monotonic() + limit(timeout)
        for pod in self.pods:
            pod.wait_ready(max(0.1, deadline - time.monotonic()))

    def remove(self, timeout: float = 10.0) -> None:
        """Stop and delete all. Raises LabError, OSError."""
        self._machine.uncover()
        for pod in (*self.pods, *self._surplus()):
            pod.remove(timeout)

    def _surplus(self) -> list[Pod]:
        """Return what is there of pods of a lab that had more of them."""
        return [Pod(self._machine, self._node, spec) for spec in pod_count.surplus(self._machine, len(self.pods))]

    def problems(self) -> list[str]:
        """Describe, one sentence each, what differs from what `ensure` creates."""
        node = pod_link.read_node(self._node.netns) if netns.is_pinned(self._node.netns) else None
        found = envoy.view_problem(self._machine) if any(pod.spec.sidecar for pod in self.pods) else ""
        left = [f"{pod.spec.name} is there, but the lab has {len(self.pods)} pods" for pod in self._surplus()]
        told = [*filter(None, [found]), *left, *(sentence for pod in self.pods for sentence in pod.problems(node))]
        # Read once for all of them: it reads every process of the machine.
        return told or socket_holders.problems(self.pods)

    def watched(self) -> AbstractContextManager[Callable[[], list[str]]]:
        """Watch what is added and removed in the network namespaces of pods and node; see namespace_watch.watched."""
        return namespace_watch.watched(self._node.netns, self.pods)

    def shell_commands(self) -> list[str]:
        """Return the lines that a person would type as root to create them. Raise LabError if Envoy is missing."""
        view = self._machine.run / "envoy"
        mount = f"touch {view} && mount --bind {shlex.quote(str(envoy.find_envoy()))} {view}"
        lines = [mount, *(line for pod in self.walkthrough for line in pod.shell_commands())]
        if self.replicas:
            first, last = self.replicas[0].spec, self.replicas[-1].spec
            lines.append(f"# and so on, as for sleep: {first.name} ({first.ip}) to {last.name} ({last.ip})")
        return lines
