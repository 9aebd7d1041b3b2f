"""The node: a network namespace between the pods, connected to nothing else.

It routes, and stands in for kube-proxy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters import iptables, links, netns, tcp
from merbridge_lab.drivers.embedded import layout, services, settings, wires
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from pathlib import Path

    from merbridge_lab.drivers.embedded.machine import Machine


class Node:
    """The machine the pods run on: routes, and the virtual addresses of the services."""

    def __init__(self, machine: Machine, backend: str = "nft") -> None:
        self._machine = machine
        self._backend = backend
        self.netns: Path = machine.netns(layout.NODE)

    def ensure(self) -> None:
        """Make what is missing. Raises LabError, OSError."""
        if netns.is_pinned(self.netns) and not self._wire_problems():
            self._set_up()
        if not netns.is_pinned(self.netns) or self._wire_problems():
            # Whatever it is, it goes with the namespace; the pods are linked to a new one. Nothing is set in it: it may
            # be somebody else's, under our name.
            netns.unpin(self.netns)
            netns.create(self.netns, netns.NEWNET)
            self._set_up()
        if self._rule_problems():
            iptables.clear(self.netns, but=self._backend, tables=services.NODES)
            iptables.load(self.netns, services.service_rules(), self._backend)

    def remove(self) -> None:
        """Let the namespace go; nothing there is fine. Raises OSError."""
        netns.unpin(self.netns)

    def problems(self) -> list[str]:
        """Say, a sentence each, what is not as `ensure` makes it."""
        if not netns.is_pinned(self.netns):
            return [f"the node's network namespace is not there ({self.netns})"]
        return self._wire_problems() + self._listeners() + self._rule_problems()

    def _set_up(self) -> None:
        links.set_up(self.netns, wires.node_sysctls(wires.read_node(self.netns)))

    def _wire_problems(self) -> list[str]:
        return wires.of_node(self._machine.run / "netns", wires.read_node(self.netns))

    def _listeners(self) -> list[str]:
        return [f"a process listens on port {each.port} in the node" for each in tcp.listening(self.netns)]

    def _rule_problems(self) -> list[str]:
        return services.problems(
            self.netns,
            services.service_rules(),
            self._backend,
            where="the node",
            tables=services.NODES,
            wrong=f"the rules for the services' addresses are not in the nat table of {self.netns}",
            stray="there are other rules in the node than those of the services",
        )

    def typed(self) -> list[str]:
        """Give the lines a person would type as root to make it, once the run directory is there."""
        inside = f"nsenter --net={self.netns}"
        dnat = [
            f"{inside} iptables-{self._backend} -t nat {line}"
            for line in lines_of(services.service_rules())
            if line.startswith("-A")
        ]
        return [
            f"touch {self.netns} && unshare --net={self.netns} true",
            f"{inside} ip link set lo up",
            f"{inside} sysctl -q -w net.ipv4.ip_forward=1 {settings.TYPED}",
            f"{inside} iptables-{self._backend} -t nat -N MERLAB-SERVICES",
            *dnat,
        ]
