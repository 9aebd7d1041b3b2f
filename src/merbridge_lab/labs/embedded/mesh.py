"""The pods of the walkthrough, created and checked together."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

from merbridge_lab.adapters import netns
from merbridge_lab.labs.embedded import envoy, namespace_watch, pod_link, socket_holders, topology
from merbridge_lab.labs.embedded.pod import Pod
from merbridge_lab.polling import limit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from merbridge_lab.labs.embedded.host import Machine
    from merbridge_lab.labs.embedded.node import Node
    from merbridge_lab.labs.embedded.topology import PodSpec

__all__ = ["Mesh", "Pod"]


class Mesh:
    """All pods of `specs`; machine and node are created before it."""

    def __init__(self, machine: Machine, node: Node, specs: Sequence[PodSpec] = topology.PODS) -> None:
        self._machine = machine
        self._node = node
        self.pods = tuple(Pod(machine, node, spec) for spec in specs)

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
        for pod in self.pods:
            pod.ensure()

    def wait_ready(self, timeout: float) -> None:
        """Wait until all pods are ready, at most `timeout` seconds together. Raises LabError."""
        deadline = time.monotonic() + limit(timeout)
        for pod in self.pods:
            pod.wait_ready(max(0.1, deadline - time.monotonic()))

    def remove(self, timeout: float = 10.0) -> None:
        """Stop and delete all. Raises LabError, OSError."""
        self._machine.uncover()
        for pod in self.pods:
            pod.remove(timeout)

    def problems(self) -> list[str]:
        """Describe, one sentence each, what differs from what `ensure` creates."""
        node = pod_link.read_node(self._node.netns) if netns.is_pinned(self._node.netns) else None
        found = envoy.view_problem(self._machine) if any(pod.spec.sidecar for pod in self.pods) else ""
        told = [*filter(None, [found]), *(sentence for pod in self.pods for sentence in pod.problems(node))]
        # Read once for all of them: it reads every process of the machine.
        return told or socket_holders.problems(self.pods)

    def watched(self) -> AbstractContextManager[Callable[[], list[str]]]:
        """Watch what is added and removed in the network namespaces of pods and node; see namespace_watch.watched."""
        return namespace_watch.watched(self._node.netns, self.pods)

    def shell_commands(self) -> list[str]:
        """Return the lines that a person would type as root to create them. Raise LabError if Envoy is missing."""
        view = self._machine.run / "envoy"
        mount = f"touch {view} && mount --bind {shlex.quote(str(envoy.find_envoy()))} {view}"
        return [mount, *(line for pod in self.pods for line in pod.shell_commands())]
