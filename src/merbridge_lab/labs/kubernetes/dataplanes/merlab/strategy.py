"""What merlab's own dataplane brings to a lab on a cluster."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING

from merbridge_lab import polling
from merbridge_lab.dataplane.evidence import CounterEvidence
from merbridge_lab.errors import LabError
from merbridge_lab.lab import (
    CONTROL_CLIENT,
    DATAPLANE,
    DEBUG_TOGGLE,
    INBOUND_WITHOUT_RULES,
    TRACE,
    ControlPair,
    ServerGroup,
)
from merbridge_lab.labs.dataplane_strategy import NoEvidence
from merbridge_lab.labs.kubernetes import topology
from merbridge_lab.labs.kubernetes.dataplanes import control_pods
from merbridge_lab.labs.kubernetes.dataplanes.merlab import (
    agent_exec,
    agent_image,
    commands,
    manifest,
    node_maps,
    preflight,
    rollout,
)
from merbridge_lab.labs.kubernetes.dataplanes.merlab.bench_switch import AgentSwitch
from merbridge_lab.labs.kubernetes.dataplanes.merlab.dataplane import MerlabDataplane
from merbridge_lab.labs.kubernetes.dataplanes.merlab.manifest import MERLAB
from merbridge_lab.labs.kubernetes.dataplanes.on_node import NodeStrategy
from merbridge_lab.labs.kubernetes.workload import KubernetesWorkload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from merbridge_lab.labs.kubernetes.dataplanes.cluster_dataplane import BenchSwitch, ClusterDataplane, Surroundings
    from merbridge_lab.labs.kubernetes.provider import Node
    from merbridge_lab.labs.kubernetes.settings import Settings
    from merbridge_lab.labs.request_batch import DataplaneEvidence
    from merbridge_lab.requirements import Requirement
    from merbridge_lab.trace_event import TraceEvent

#: Seconds until the agent serves a pod that is ready.
_SERVED = 10.0


class Strategy(NodeStrategy):
    """The ClusterDataplane protocol over the agent's DaemonSet, whose pins this machine's kernel reads."""

    name = MERLAB
    intercepts = True
    needs_this_kernel = True
    capabilities = frozenset({DATAPLANE, INBOUND_WITHOUT_RULES, DEBUG_TOGGLE, TRACE, CONTROL_CLIENT})
    component: MerlabDataplane

    def __init__(self, around: Surroundings) -> None:
        self._access = around.access
        self.component = MerlabDataplane(around)
        self._pair = control_pods.Pair(around.access, self._control_client, disposable=True)

    def _control_client(self) -> KubernetesWorkload:
        """Return the workload of the control client: its label tells the agent to leave its pod to the rules."""
        return KubernetesWorkload(self._access.api(), control_pods.CLIENT, self._access.node_exec())

    @staticmethod
    def why_missing(capability: str) -> str:
        """Describe why a capability is missing."""
        return f"this lab has no {capability}"

    # -- before it is installed -------------------------------------------------------------------------------------

    def requirements(self, settings: Settings) -> list[Requirement]:
        """Probe what it needs of this machine."""
        return preflight.requirements(settings.images[MERLAB], self._access.provider.images)

    def require_able(self) -> None:
        """Raise LabError if its image is neither here nor in the cluster."""
        node = self._access.node() if self._access.answers() else None
        agent_image.SOURCE.require(self.images(self._access.settings()), node, self._access.provider.images)

    def images(self, settings: Settings) -> list[str]:
        """Return its one image."""
        return [settings.images[MERLAB]]

    # -- what it shows ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def evidence(self, servers: Sequence[KubernetesWorkload]) -> Iterator[DataplaneEvidence]:
        """Yield the counters of the pinned maps, and the trace if it is on; nothing if nothing is attached."""
        legs = node_maps.legs(self.component.place()) if self.component.attached else None
        if legs is None:
            yield NoEvidence()
            return
        specs = {spec.name: spec for spec in (*topology.WORKLOADS, *(server.spec for server in servers))}
        place, found = self.component.place(), node_maps.workload_pods(self._access.api(), specs.values())
        with contextlib.ExitStack() as stack:
            drain = stack.enter_context(self.component.reader().batch_trace()) if self.component.debug else None
            yield CounterEvidence(lambda: node_maps.counters(place, found), legs, drain)

    def control_pair(self) -> ControlPair:
        """Return a client that opted out, with a server that did, too. Raises LabError."""
        client, server = self._pair.get()
        return ControlPair(client, server, control_pods.URL)

    def disposable_server(self) -> ServerGroup:
        """Return a server of the mesh that nobody else uses. Raise LabError if eBPF does not serve it."""
        server, reader = self._pair.disposable(), self.component.reader()
        uid = server.pod.uid
        what = f"{control_pods.DISPOSABLE.name} to be served by eBPF"
        if not polling.poll_until(lambda: uid in reader.served(), timeout=_SERVED, every=0.1, awaiting=what):
            why = agent_exec.why_left(self._access.api(), uid) or "the agent does not know it"
            raise LabError(
                f"eBPF does not serve {control_pods.DISPOSABLE.name}: {why}",
                hint="merlab status",
                id="dataplane.incomplete",
            )
        return ServerGroup([server], control_pods.DISPOSABLE_URL)

    def bench_switch(self) -> BenchSwitch:
        """Return what tells the agent which bench pods to serve. Raise LabError if nothing is attached."""
        if not self.component.attached:
            raise LabError("the eBPF dataplane is not attached", hint="merlab up", id="dataplane.incomplete")
        return AgentSwitch(self._access, self.component.place())

    def trace_command(self, node: Node) -> str:  # noqa: ARG002 - the protocol's
        """Return the command that follows the trace in the agent."""
        return commands.trace(self._access.provider.context)

    def follow_trace(self, *, pod: str | None, nonce: str | None) -> Iterator[TraceEvent | None]:
        """Return the trace's events as they arrive, until interrupted; None if nothing arrived for a moment.

        Raises LabError.
        """
        if pod or nonce:
            raise LabError(
                "on a cluster, the trace is not told apart by pod or request",
                hint="merlab step 5",
                id="capability.missing",
            )
        return self.component.reader().follow_trace()

    def fingerprint(self) -> dict[str, str]:
        """Return the identity of each program, and of the links of the walkthrough's pods. Raises LabError.

        Other pods of the mesh come and go.
        """
        reader = self.component.reader()
        pods = [pod for found in node_maps.workload_pods(self._access.api()).values() for pod in found]
        own = {f"{topology.NAMESPACE}/{pod.name}" for pod in pods}
        links = {name: link for name, link in reader.links().items() if name.rpartition(" of ")[2] in own}
        programs = {f"the program {each.name}": str(each.id) for each in reader.programs()}
        return programs | {f"the link {name}": link for name, link in links.items()}

    def describe(self) -> dict[str, object]:
        """Return its state as `merlab status --json` prints it."""
        attached, programs, legs = self.component.attached, 0, None
        with contextlib.suppress(LabError):
            programs = len(self.component.reader().programs()) if attached else 0
            legs = node_maps.legs(self.component.place()) if attached else None
        told: dict[str, object] = {"kind": self.name, "attached": attached, "programs": programs}
        return {**told, "legs": asdict(legs)} if legs else told

    def dump(self) -> dict[str, Callable[[], object]]:
        """Return its own parts of a sysdump."""
        api, reader = self._access.api(), self.component.reader()
        return {
            "merlab-agent/daemonset.json": lambda: api.find(manifest.PATH),
            "merlab-agent/log.txt": lambda: rollout.logged(api),
            "merlab-agent/status.json": lambda: agent_exec.status(api),
            "merlab-agent/programs.json": lambda: [asdict(each) for each in reader.programs()],
            "merlab-agent/counters.json": lambda: dict(reader.counters()),
            "merlab-agent/pairs.json": lambda: [asdict(each) for each in reader.pairs()],
        }


if TYPE_CHECKING:
    _KEEPS_TO: type[ClusterDataplane] = Strategy
