"""The lab on a cluster, as steps use it: the walkthrough with Kubernetes and Istio."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from merbridge_lab.adapters import conntrack
from merbridge_lab.adapters.command import run
from merbridge_lab.command_events import CommandTranscript
from merbridge_lab.errors import LabError, UsageError
from merbridge_lab.evidence import Unread, Verdict
from merbridge_lab.lab import (
    CONTROL_CLIENT,
    DATAPLANE,
    DEBUG_TOGGLE,
    DIALS,
    HELLO,
    INBOUND_WITHOUT_RULES,
    TRACE,
    ControlPair,
)
from merbridge_lab.labs import request_batch
from merbridge_lab.labs.base import LabBase
from merbridge_lab.labs.kind import ownership
from merbridge_lab.labs.kind.cluster import NodeComponent
from merbridge_lab.labs.kubernetes import commands, topology
from merbridge_lab.labs.kubernetes.connection import Access
from merbridge_lab.labs.kubernetes.dataplanes.merbridge import (
    control_pods,
    evidence,
    images,
    installation,
    limitations,
    manifest,
    preflight,
)
from merbridge_lab.labs.kubernetes.dataplanes.merbridge.dataplane import MerbridgeDataplane
from merbridge_lab.labs.kubernetes.dataplanes.none import WHY, NoDataplane, why
from merbridge_lab.labs.kubernetes.mesh import MeshComponent
from merbridge_lab.labs.kubernetes.offline_commands import OfflineCommands
from merbridge_lab.labs.kubernetes.settings import MERBRIDGE, versions
from merbridge_lab.labs.kubernetes.workload import KindWorkload
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from merbridge_lab.dial_results import Dial
    from merbridge_lab.lab import Workload
    from merbridge_lab.labs.options import Options
    from merbridge_lab.merbridge.trace import MerbridgeEvent
    from merbridge_lab.observation import Observation
    from merbridge_lab.requirements import Requirement


#: What upstream's dataplane cannot do, of the capabilities of a dataplane.
_LACKS = {
    DEBUG_TOGGLE: "Merbridge compiles its debug flag in, so it restarts for that",
    INBOUND_WITHOUT_RULES: "outside CNI mode, Merbridge leaves the way into a pod to the pod's rules",
}
#: The programs that show the eBPF in a kernel.
_INVENTORY = ("bpftool map", "bpftool prog", "bpftool cgroup tree")


def _own(workload: Workload) -> KindWorkload:
    """Return a workload with this lab's type: steps pass back workloads that they got from the lab."""
    return cast("KindWorkload", workload)


class KubernetesLab(LabBase):
    """The Lab protocol over a kind cluster; `keep` leaves rules flushed after a flush."""

    name = "kind"
    follows_original = True

    def __init__(self, options: Options, *, keep: bool = False) -> None:
        super().__init__(keeps_flushed=keep)
        self._keep = keep
        self._keeps_cluster = options.keep_cluster
        self._knows_context = False
        self._workloads: dict[str, KindWorkload] = {}
        self._access = access = Access(options)
        self.api, self.node_name, self.settings = access.api, access.node, access.settings
        self.find_node_exec = access.find_node_exec
        self.node = NodeComponent(access, self._forget, kubeconfig=options.kubeconfig, keep=options.keep_cluster)
        self.mesh = MeshComponent(access, self.workloads, keep=options.keep_cluster)
        self._none = NoDataplane()
        self.merbridge = MerbridgeDataplane(access, self.mesh.renew, self.mesh.warm)
        self._pair = control_pods.Pair(access, self.merbridge.place)

    def _forget(self) -> None:
        self._access.forget()
        self._workloads.clear()
        self.merbridge.forget()

    # -- what intercepts ----------------------------------------------------------------------------------------------

    @property
    def intercepts(self) -> bool:
        """Report whether the lab is configured with a dataplane."""
        return self._access.best_known_settings().dataplane == MERBRIDGE

    @property
    def dataplane(self) -> MerbridgeDataplane | NoDataplane:
        """Upstream's Merbridge, or none."""
        return self.merbridge if self.intercepts else self._none

    @property
    def capabilities(self) -> frozenset[str]:
        """The capabilities of the lab, depending on its dataplane."""
        return frozenset({DATAPLANE, TRACE, CONTROL_CLIENT}) if self.intercepts else frozenset()

    # -- the walkthrough's nouns --------------------------------------------------------------------------------------

    def workloads(self) -> list[KindWorkload]:
        """Return the workloads of the walkthrough."""
        return [self.workload(spec.name) for spec in topology.WORKLOADS]

    def workload(self, name: str) -> KindWorkload:
        """Return a workload by name. Raise LabError for one that does not exist."""
        specs = {spec.name: spec for spec in topology.WORKLOADS}
        if name not in specs:
            raise UsageError(f"there is no workload called {name!r}; there are {', '.join(specs)}")
        if name not in self._workloads:
            self._workloads[name] = KindWorkload(self.api(), specs[name], self._access.node_exec(), keep=self._keep)
        return self._workloads[name]

    def servers(self) -> list[KindWorkload]:
        """Return the workloads behind the service helloworld."""
        return [self.workload(spec.name) for spec in topology.SERVERS]

    @contextlib.contextmanager
    def control_client(self, of: str = "sleep", *, sidecar: bool = True) -> Iterator[KindWorkload]:  # noqa: ARG002 - the protocol's
        """Return a client that is out of the dataplane's reach; its pod stays while merlab runs, for the next time.

        It always has a sidecar. Raise LabError without a dataplane: there sleep itself shows what the rules do.
        """
        with self.control_pair() as pair:
            yield _own(pair.client)

    @contextlib.contextmanager
    def control_pair(self) -> Iterator[ControlPair]:
        """Return that client with a server of its own; see control_client."""
        if not self.intercepts:
            raise LabError(self.why_missing(CONTROL_CLIENT))
        client, server = self._pair.get()
        yield ControlPair(client, server, control_pods.URL)

    def drain_idle_connections(self) -> bool:
        """Return False: Istio's sidecars keep idle connections for an hour."""
        return False

    def observe(
        self,
        client: Workload,
        *,
        count: int = 4,
        trace: bool = False,  # noqa: ARG002 - the protocol's; what there is, is always read
        url: str = HELLO,
        server: Workload | None = None,
        logged: bool = True,
    ) -> Observation:
        """Send requests as the app of `client` and read all evidence around them."""
        own = _own(client)
        servers = [_own(server)] if server is not None else self.servers()
        around: dict[str, Any] = {"counters": dict}
        with contextlib.ExitStack() as stack:
            if self.intercepts and installation.there(self._access):
                place = self.merbridge.place()
                seeing = stack.enter_context(evidence.watching(place, self.merbridge.state()))
                around = {"counters": seeing.counters, "trace": seeing.trace, "noted": seeing.noted}
                around["limits"] = limitations.of(place, self._access.settings().sidecars, servers)
            seen = request_batch.observe(
                own,
                ask=lambda: own.ask(url),
                own=own.log(),
                logs={one.name: one.log() for one in servers},
                count=count,
                changed_sources=lambda: conntrack.merge(one.changed_sources() for one in (own, *servers)),
                logged=logged,
                **around,
            )
        if not seen.trace or isinstance(seen.trace, Unread):
            return seen
        return replace(seen, trace=evidence.of_requests(seen.trace, evidence.destinations(self.api(), servers)))

    def dial(self, client: Workload) -> Sequence[Dial]:  # noqa: ARG002 - the protocol's
        """Raise LabError: upstream keeps no map of its connections."""
        raise LabError(self.why_missing(DIALS), hint="merlab verify --lab embedded")

    def logged(self, nonces: Iterable[str]) -> list[str]:
        """Return the access log lines of all sidecars that mention one of `nonces`."""
        wanted = tuple(nonces)
        return [
            f"{workload.name}: {line}"
            for workload in self.workloads()
            for line in lines_of(workload.logged())
            if any(nonce in line for nonce in wanted)
        ]

    def watched(self) -> contextlib.AbstractContextManager[Callable[[], list[str]]]:
        """Yield a function that returns nothing: this lab does not watch the nodes' namespaces."""
        return contextlib.nullcontext(list)

    def fingerprint(self) -> dict[str, str]:
        """Return what must not change during a proof."""
        found = {}
        for workload in self.workloads():
            pod, process = workload.found(refresh=True)
            found[f"the pod of {workload.name}"] = f"{pod.uid}, {pod.restarts} restarts"
            found[f"the app of {workload.name}"] = f"{process.pid} since {process.started}"
            found[f"the nat rules of {workload.name}"] = workload.rules.snapshot().fingerprint("nat")
        if self.intercepts:
            attached = self.merbridge.state()
            found |= {f"the program {hook}": str(number) for hook, number in attached.programs.items()}
        return found

    def trace_command(self) -> str:
        """Return the walkthrough's command, on the node."""
        return commands.trace(self._access.node())

    def follow_trace(self, *, pod: str | None = None, nonce: str | None = None) -> Iterator[MerbridgeEvent]:
        """Return the trace's events as they arrive, until interrupted. Raise LabError if none can arrive."""
        if not self.intercepts:
            raise LabError(WHY, hint="merlab up --lab kind --dataplane merbridge")
        if pod or nonce:
            raise LabError("Merbridge's trace names neither pods nor connections", hint="merlab step 5")
        if not self.merbridge.debug:
            raise LabError("Merbridge writes no trace lines: it runs without -d", hint="merlab step 4")
        return evidence.follow(self.merbridge.place())

    def why_missing(self, capability: str) -> str:
        """Describe why a capability is missing."""
        if self.intercepts:
            return _LACKS.get(capability, f"the kind lab has no {capability}")
        return why(capability)

    def requirements(self) -> list[Requirement]:
        """Probe what this machine offers and lacks."""
        from merbridge_lab.requirements import kind_lab

        likely = self._access.best_known_settings()
        tools = kind_lab.kind(
            kubernetes=likely.kubernetes,
            misfit=likely.misfit(),
            istio=likely.istio_tag,
            tested=versions()["kind"]["tested"],
            same_kernel=self.intercepts,
        )
        found = [*tools, *ownership.requirement()]
        return (
            [*found, *preflight.requirements(likely.images[MERBRIDGE], likely.sidecars, self._others)]
            if self.intercepts
            else found
        )

    def _others(self) -> list[str]:
        return installation.others(self.api()) if self._access.answers() else []

    def require_able(self) -> None:
        """Raise LabError if this machine lacks something; name the first thing and the command that fixes it."""
        for lacking in self.requirements():
            if lacking.verdict == Verdict.FAIL.value:
                raise LabError(f"{lacking.name}: found {lacking.found}, needed {lacking.needed}", hint=lacking.hint)
        if self.intercepts and not self.merbridge.attached:
            wanted = manifest.daemonset(manifest.objects(self.settings()))
            node = self._access.node() if self._access.answers() else None
            images.require([one["image"] for one in manifest.containers(wanted)], node)

    def inventory(self) -> list[CommandTranscript]:
        """Return the eBPF in this machine's kernel, which is the node's too; nothing if it is not visible."""
        if shutil.which("bpftool") is None or os.geteuid() != 0:
            return []
        return [CommandTranscript(command, run(command.split(), ok=range(256)).stdout) for command in _INVENTORY]

    def inventory_commands(self) -> list[str]:
        """Return the walkthrough's commands, as root types them on this machine."""
        return list(_INVENTORY)

    def offline_commands(self) -> OfflineCommands:
        """Return the placeholders for the commands of steps when no lab is up; they cannot do anything."""
        return OfflineCommands(self.node, self.mesh, self.dataplane, self.inventory_commands)

    def _with_context(self, commands: tuple[str, ...]) -> tuple[str, ...]:
        """Put the command that makes the cluster's context known before the first that uses it."""
        if self._knows_context or not any(topology.CONTEXT in each for each in commands):
            return commands
        self._knows_context = True
        return (*self._access.export(), *commands)
