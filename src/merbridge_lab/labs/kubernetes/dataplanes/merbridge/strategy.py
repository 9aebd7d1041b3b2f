"""What upstream Merbridge brings to a lab on a cluster."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NoReturn

from merbridge_lab.errors import LabError
from merbridge_lab.lab import CONTROL_CLIENT, DATAPLANE, DEBUG_TOGGLE, INBOUND_WITHOUT_RULES, TRACE, ControlPair
from merbridge_lab.labs.dataplane_strategy import NoEvidence
from merbridge_lab.labs.kubernetes import commands
from merbridge_lab.labs.kubernetes.dataplanes import control_pods, node_trace
from merbridge_lab.labs.kubernetes.dataplanes.merbridge import (
    evidence,
    installation,
    limitations,
    manifest,
    outside_client,
    preflight,
    upstream_image,
)
from merbridge_lab.labs.kubernetes.dataplanes.merbridge.dataplane import MerbridgeDataplane
from merbridge_lab.labs.kubernetes.dataplanes.merbridge.manifest import MERBRIDGE
from merbridge_lab.labs.kubernetes.dataplanes.on_node import NodeStrategy
from merbridge_lab.merbridge import trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from merbridge_lab.labs.kubernetes.dataplanes.cluster_dataplane import ClusterDataplane, Surroundings
    from merbridge_lab.labs.kubernetes.provider import Node
    from merbridge_lab.labs.kubernetes.settings import Settings
    from merbridge_lab.labs.kubernetes.workload import KubernetesWorkload
    from merbridge_lab.labs.request_batch import DataplaneEvidence
    from merbridge_lab.requirements import Requirement
    from merbridge_lab.trace_event import TraceEvent

#: What upstream cannot do, of the capabilities of a dataplane.
_LACKS = {
    DEBUG_TOGGLE: "Merbridge compiles its debug flag in, so it restarts for that",
    INBOUND_WITHOUT_RULES: "outside CNI mode, Merbridge leaves the way into a pod to the pod's rules",
}


class Strategy(NodeStrategy):
    """The ClusterDataplane protocol over upstream's DaemonSet, read from outside by this machine's kernel."""

    name = MERBRIDGE
    intercepts = True
    needs_this_kernel = True
    capabilities = frozenset({DATAPLANE, TRACE, CONTROL_CLIENT})
    component: MerbridgeDataplane

    def __init__(self, around: Surroundings) -> None:
        self._access = around.access
        self.component = MerbridgeDataplane(around.access, around.renew, around.warm)
        self._pair = control_pods.Pair(
            around.access, lambda: outside_client.client(around.access, self.component.place)
        )

    @staticmethod
    def why_missing(capability: str) -> str:
        """Describe why a capability is missing."""
        return _LACKS.get(capability, f"this lab has no {capability}")

    # -- before it is installed -------------------------------------------------------------------------------------

    def requirements(self, settings: Settings) -> list[Requirement]:
        """Probe what it needs of this machine and of the cluster."""
        return preflight.requirements(
            settings.images[MERBRIDGE], settings.sidecars, self._access.provider.images, self._others
        )

    def _others(self) -> list[str]:
        return installation.others(self._access.api()) if self._access.answers() else []

    def require_able(self) -> None:
        """Raise LabError if an image of what would be installed can neither be found here nor in the cluster."""
        if not self.component.attached:
            wanted = manifest.daemonset(manifest.objects(self._access.settings()))
            node = self._access.node() if self._access.answers() else None
            upstream_image.SOURCE.require(manifest.images(wanted), node, self._access.provider.images)

    def images(self, settings: Settings) -> list[str]:
        """Return its one image."""
        return [settings.images[MERBRIDGE]]

    # -- what it shows ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def evidence(self, servers: Sequence[KubernetesWorkload]) -> Iterator[DataplaneEvidence]:
        """Yield what the kernel shows of it during a batch; nothing if it is not installed. Raises LabError."""
        if not installation.there(self._access):
            yield NoEvidence()
            return
        place = self.component.place()
        with evidence.watching(
            place,
            self.component.state(),
            limits=lambda: limitations.of(place, self._access.settings().sidecars, servers),
            meant=lambda: evidence.destinations(self._access.api(), servers),
        ) as watch:
            yield watch

    def control_pair(self) -> ControlPair:
        """Return a client that is out of its reach, with a server of its own. Raises LabError."""
        client, server = self._pair.get()
        return ControlPair(client, server, control_pods.URL)

    def disposable_server(self) -> None:
        """Return None: Merbridge leaves the servers' side to the rules."""

    def bench_switch(self) -> NoReturn:
        """Raise LabError: upstream attaches to the whole node."""
        raise LabError(
            "Merbridge attaches to the cgroup of the whole node and serves every pod of it: none can go by the rules"
            " beside it, and merlab bench compares pods of one moment",
            hint="merlab up --dataplane none && merlab up --dataplane merlab && merlab bench",
            id="capability.missing",
        )

    def trace_command(self, node: Node) -> str:
        """Return the walkthrough's command, on the node."""
        return commands.trace(node)

    def follow_trace(self, *, pod: str | None, nonce: str | None) -> Iterator[TraceEvent | None]:
        """Return the trace's events as they arrive, until interrupted; None if nothing arrived for a moment.

        Raise LabError if none can arrive.
        """
        if pod or nonce:
            raise LabError(
                "Merbridge's trace names neither pods nor connections", hint="merlab step 5", id="capability.missing"
            )
        if not self.component.debug:
            raise LabError(
                "Merbridge writes no trace lines: it runs without -d", hint="merlab step 4", id="dataplane.incomplete"
            )
        return node_trace.follow(self.component.place(), trace.parse)

    def fingerprint(self) -> dict[str, str]:
        """Return the ids of its programs. Raises LabError."""
        return {f"the program {hook}": str(number) for hook, number in self.component.state().programs.items()}

    def describe(self) -> dict[str, object]:
        """Return its state as `merlab status --json` prints it."""
        programs = 0
        with contextlib.suppress(LabError):
            programs = len(self.component.state().programs)
        return {"kind": self.name, "attached": self.component.attached, "programs": programs}

    def dump(self) -> dict[str, Callable[[], object]]:
        """Return its own parts of a sysdump."""
        return self.component.dump()


if TYPE_CHECKING:
    _KEEPS_TO: type[ClusterDataplane] = Strategy
