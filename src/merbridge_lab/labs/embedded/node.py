"""The node: a network namespace between the pods, without any other connection.

It routes, and acts as kube-proxy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters import iptables, links, netns, tcp_sockets
from merbridge_lab.labs.embedded import pod_link, rule_templates, sysctl_drift, topology
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from pathlib import Path

    from merbridge_lab.labs.embedded.host import Machine


class Node:
    """The machine that the pods run on: routes, and the virtual addresses of the services."""

    def __init__(self, machine: Machine, backend: str = "nft") -> None:
        self._machine = machine
        self._backend = backend
        self.netns: Path = machine.netns(topology.NODE)

    def ensure(self) -> None:
        """Create what is missing. Raises LabError, OSError."""
        if netns.is_pinned(self.netns) and not self._wire_problems():
            self._set_up()
        if not netns.is_pinned(self.netns) or self._wire_problems():
            # Its content goes with the namespace; the pods are linked to a new one. Nothing is set in it: it may be
            # somebody else's, under our name.
            netns.unpin(self.netns)
            netns.create(self.netns, netns.NEWNET)
            self._set_up()
        if self._rule_problems():
            iptables.clear(self.netns, but=self._backend, tables=rule_templates.NODES)
            iptables.load(self.netns, rule_templates.service_rules(), self._backend)

    def remove(self) -> None:
        """Remove the namespace; succeed if there is none. Raises OSError."""
        netns.unpin(self.netns)

    def problems(self) -> list[str]:
        """Describe, one sentence each, what differs from what `ensure` creates."""
        if not netns.is_pinned(self.netns):
            return [f"the node's network namespace is not there ({self.netns})"]
        return self._wire_problems() + self._listeners() + self._rule_problems()

    def _set_up(self) -> None:
        links.set_up(self.netns, pod_link.node_sysctls(pod_link.read_node(self.netns)))

    def _wire_problems(self) -> list[str]:
        return pod_link.of_node(self._machine.run / "netns", pod_link.read_node(self.netns))

    def _listeners(self) -> list[str]:
        return [f"a process listens on port {each.port} in the node" for each in tcp_sockets.listening(self.netns)]

    def _rule_problems(self) -> list[str]:
        return rule_templates.problems(
            self.netns,
            rule_templates.service_rules(),
            self._backend,
            where="the node",
            tables=rule_templates.NODES,
            wrong=f"the rules for the services' addresses are not in the nat table of {self.netns}",
            stray="there are other rules in the node than those of the services",
        )

    def shell_commands(self) -> list[str]:
        """Return the lines that a person would type as root to create it, once the run directory exists."""
        inside = f"nsenter --net={self.netns}"
        dnat = [
            f"{inside} iptables-{self._backend} -t nat {line}"
            for line in lines_of(rule_templates.service_rules())
            if line.startswith("-A")
        ]
        return [
            f"touch {self.netns} && unshare --net={self.netns} true",
            f"{inside} ip link set lo up",
            f"{inside} sysctl -q -w net.ipv4.ip_forward=1 {sysctl_drift.TYPED}",
            f"{inside} iptables-{self._backend} -t nat -N MERLAB-SERVICES",
            *dnat,
        ]
