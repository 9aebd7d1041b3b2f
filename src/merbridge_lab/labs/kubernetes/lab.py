"""The lab on a cluster, as steps use it: the walkthrough with Kubernetes and Istio."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, cast

from merbridge_lab import hints
from merbridge_lab.adapters.command import run
from merbridge_lab.command_events import CommandTranscript
from merbridge_lab.errors import LabError, UsageError
from merbridge_lab.evidence import Verdict
from merbridge_lab.lab import (
    CONTROL_CLIENT,
    DIALS,
    HELLO,
    INBOUND_WITHOUT_RULES,
    ControlPair,
    ServerGroup,
)
from merbridge_lab.labs import request_batch
from merbridge_lab.labs.base import LabBase
from merbridge_lab.labs.kubernetes import topology
from merbridge_lab.labs.kubernetes.batch_source import ClusterBatch
from merbridge_lab.labs.kubernetes.connection import Access
from merbridge_lab.labs.kubernetes.dataplanes import registry
from merbridge_lab.labs.kubernetes.dataplanes.cluster_dataplane import Surroundings
from merbridge_lab.labs.kubernetes.mesh import MeshComponent
from merbridge_lab.labs.kubernetes.offline_commands import OfflineCommands
from merbridge_lab.labs.kubernetes.workload import KubernetesWorkload
from merbridge_lab.starting import Starting
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from merbridge_lab.dial_results import Dial
    from merbridge_lab.lab import Dataplane, Workload
    from merbridge_lab.labs.kubernetes.dataplanes.cluster_dataplane import ClusterDataplane
    from merbridge_lab.labs.kubernetes.provider import OwningProvider
    from merbridge_lab.labs.options import Options
    from merbridge_lab.observation import Observation
    from merbridge_lab.requirements import Requirement
    from merbridge_lab.trace_event import TraceEvent


#: The programs that show the eBPF in a kernel.
_INVENTORY = ("bpftool map", "bpftool prog", "bpftool cgroup tree")
#: How often requests are sent again, at most. Sidecars keep connections for an hour, one for each server and thread of
#: theirs, and a dataplane may send the first message after a long pause by TCP, for conntrack. That is not in question.
_BATCHES = 6


def _own(workload: Workload) -> KubernetesWorkload:
    """Return a workload with this lab's type: steps pass back workloads that they got from the lab."""
    return cast("KubernetesWorkload", workload)


class KubernetesLab(LabBase):
    """The Lab protocol over the cluster that `provider` brings; `keep` leaves rules flushed after a flush."""

    follows_original = True

    def __init__(self, provider: OwningProvider, options: Options, *, keep: bool = False) -> None:
        super().__init__(keeps_flushed=keep)
        self.provider, self.name = provider, provider.name
        self._keep = keep
        self._knows_context = False
        self._workloads: dict[str, KubernetesWorkload] = {}
        self._access = access = Access(provider, options)
        self.api, self.find_node, self.settings = access.api, access.node, access.settings
        self.find_node_exec = access.find_node_exec
        self.node = provider.component(access, self._forget)
        self.mesh = MeshComponent(
            access,
            provider,
            self.workloads,
            lambda settings: self._named(settings.dataplane).images(settings),
            keep=options.keep_cluster,
        )
        self._strategies: dict[str, ClusterDataplane] = {}
        self._control: tuple[KubernetesWorkload, ...] = ()
        self._disposable: tuple[KubernetesWorkload, ...] = ()

    def _forget(self) -> None:
        self._access.forget()
        self._workloads.clear()
        for strategy in self._strategies.values():
            strategy.forget()

    # -- what intercepts ----------------------------------------------------------------------------------------------

    @property
    def strategy(self) -> ClusterDataplane:
        """The dataplane that the lab is configured with. Everything that differs between dataplanes is asked of it."""
        return self._named(self._access.best_known_settings().dataplane)

    def _named(self, name: str) -> ClusterDataplane:
        if name not in self._strategies:
            sleep = topology.SLEEP.name
            around = Surroundings(
                self._access,
                self.mesh.renew,
                self.mesh.warm,
                lambda: self._end_connections(self.workload(sleep)),
            )
            self._strategies[name] = registry.create(name, around)
        return self._strategies[name]

    @property
    def dataplane(self) -> Dataplane:
        """The component of this dataplane."""
        return self.strategy.component

    @property
    def capabilities(self) -> frozenset[str]:
        """The capabilities of the lab: those of its dataplane."""
        return self.strategy.capabilities

    # -- the walkthrough's nouns --------------------------------------------------------------------------------------

    def workloads(self) -> list[KubernetesWorkload]:
        """Return the workloads of the walkthrough."""
        return [self.workload(spec.name) for spec in topology.WORKLOADS]

    def workload(self, name: str) -> KubernetesWorkload:
        """Return a workload by name. Raise LabError for one that does not exist."""
        specs = {spec.name: spec for spec in topology.WORKLOADS}
        if name not in specs:
            raise UsageError(f"there is no workload called {name!r}; there are {', '.join(specs)}")
        if name not in self._workloads:
            self._workloads[name] = KubernetesWorkload(
                self.api(), specs[name], self._access.node_exec(), keep=self._keep
            )
        return self._workloads[name]

    def servers(self) -> list[KubernetesWorkload]:
        """Return the workloads behind the service helloworld."""
        return [self.workload(spec.name) for spec in topology.SERVERS]

    @contextlib.contextmanager
    def control_client(self, of: str = "sleep", *, sidecar: bool = True) -> Iterator[Starting[KubernetesWorkload]]:  # noqa: ARG002 - the protocol's
        """Return a client that is out of the dataplane's reach; its pod stays while merlab runs, for the next time.

        It is a copy of sleep, and always has a sidecar. Raise LabError for a copy of another workload, and without a
        dataplane: there sleep itself shows what the rules do.
        """
        if of != topology.SLEEP.name:
            raise LabError(
                f"on a cluster there is a control client of {topology.SLEEP.name} only, not of {of}",
                hint="merlab status",
                id="capability.missing",
            )
        with self.control_pair() as starting:
            yield Starting(lambda: _own(starting.ready().client))

    @contextlib.contextmanager
    def control_pair(self) -> Iterator[Starting[ControlPair]]:
        """Return that client with a server of its own; see control_client. Raise LabError without a dataplane."""
        if CONTROL_CLIENT not in self.capabilities:
            raise LabError(self.why_missing(CONTROL_CLIENT), hint="merlab status", id="capability.missing")

        def ready() -> ControlPair:
            pair = self.strategy.control_pair()
            self._control = (_own(pair.client), _own(pair.server))
            return pair

        yield Starting(ready)

    @contextlib.contextmanager
    def flushable_servers(self) -> Iterator[ServerGroup]:
        """Return a disposable server with a service of its own, if the dataplane can serve one without its rules.

        Other pods of the cluster may depend on helloworld. Without its rules, a server of a dataplane that leaves the
        servers' side to them only shows that limit: then it is helloworld's that are flushed, for a moment.
        """
        group = self.strategy.disposable_server()
        if group is None:
            yield ServerGroup(self.servers())
            return
        self._disposable = tuple(map(_own, group.servers))
        for client in (self.workload(topology.SLEEP.name), *self._control[:1]):
            client.await_answer(group.url)
        yield group

    def drain_idle_connections(self) -> bool:
        """End the connections that the clients' sidecars keep for an hour; return whether the next ones are new.

        With a dataplane that leaves the servers' side to the rules, keep them: new ones are then not its matter.
        """
        if INBOUND_WITHOUT_RULES not in self.capabilities:
            return False
        return self._end_connections(self.workload(topology.SLEEP.name), *self._control[:1])

    def _end_connections(self, *clients: KubernetesWorkload) -> bool:
        ended = [client.end_connections(topology.PORT) for client in clients]
        return all(ended)

    def observe(
        self,
        client: Workload,
        *,
        count: int = 4,
        trace: bool = False,  # noqa: ARG002 - the protocol's; what there is, is always read
        url: str = HELLO,
        servers: Sequence[Workload] = (),
        logged: bool = True,
    ) -> Observation:
        """Send requests as the app of `client` and read all evidence around them."""
        answering = list(map(_own, servers)) or self.servers()
        for _ in range(_BATCHES):
            with self.strategy.evidence(answering) as dataplane:
                source = ClusterBatch(_own(client), answering, url, dataplane)
                seen = request_batch.observe(source, count=count, logged=logged)
            if not seen.interception.refreshed:
                break
        return seen

    def dial(self, client: Workload) -> Sequence[Dial]:  # noqa: ARG002 - the protocol's
        """Raise LabError: no dataplane on a cluster tells what it records of a connection."""
        raise LabError(self.why_missing(DIALS), hint=hints.VERIFY_WITHOUT_CLUSTER, id="capability.missing")

    def logged(self, nonces: Iterable[str]) -> list[str]:
        """Return the access log lines of all sidecars that mention one of `nonces`."""
        wanted = tuple(nonces)
        return [
            f"{workload.name}: {line}"
            for workload in (*self.workloads(), *self._control, *self._disposable)
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
        return found | self.strategy.fingerprint()

    def trace_command(self) -> str:
        """Return the command that a person would type to read the dataplane's trace."""
        return self.strategy.trace_command(self._access.node())

    def follow_trace(self, *, pod: str | None = None, nonce: str | None = None) -> Iterator[TraceEvent | None]:
        """Return the trace's events as they arrive, until interrupted; see ClusterDataplane. Raises LabError."""
        return self.strategy.follow_trace(pod=pod, nonce=nonce)

    def why_missing(self, capability: str) -> str:
        """Describe why a capability is missing."""
        return self.strategy.why_missing(capability)

    def requirements(self) -> list[Requirement]:
        """Probe what this machine offers and lacks."""
        likely = self._access.best_known_settings()
        found = self.provider.requirements(likely, same_kernel=self.strategy.needs_this_kernel)
        return [*found, *self.strategy.requirements(likely)]

    def require_able(self) -> None:
        """Raise LabError if this machine lacks something; name the first thing and the command that fixes it."""
        for lacking in self.requirements():
            if lacking.verdict == Verdict.FAIL.value:
                raise lacking.error()
        self.strategy.require_able()

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
        return OfflineCommands(
            self.provider,
            self.node,
            self.mesh,
            self.dataplane,
            self.inventory_commands,
            self.strategy.trace_command,
        )

    def _with_context(self, commands: tuple[str, ...]) -> tuple[str, ...]:
        """Put the command that makes the cluster's context known before the first that uses it."""
        if self._knows_context or not any(self.provider.context in each for each in commands):
            return commands
        self._knows_context = True
        return (*self._access.context_commands(), *commands)
