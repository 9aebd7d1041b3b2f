"""The embedded lab: the walkthrough on one machine, made of namespaces, real Envoys and our own dataplane."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, cast

from merbridge_lab.adapters import iptables
from merbridge_lab.adapters.command import pasteable, run
from merbridge_lab.command_events import CommandTranscript
from merbridge_lab.errors import LabError, UsageError
from merbridge_lab.evidence import UnreadError, Verdict
from merbridge_lab.lab import (
    APP_REPORTS_PEER,
    DIALS,
    HELLO,
    ControlPair,
    ServerGroup,
)
from merbridge_lab.labs.base import LabBase
from merbridge_lab.labs.embedded import (
    batch_guard,
    bench_pods,
    control_pods,
    dialing,
    http_client,
    logs,
    pod_count,
    topology,
)
from merbridge_lab.labs.embedded.components import MeshComponent, NodeComponent
from merbridge_lab.labs.embedded.dataplane import EmbeddedDataplane
from merbridge_lab.labs.embedded.host import Machine
from merbridge_lab.labs.embedded.mesh import Mesh
from merbridge_lab.labs.embedded.node import Node
from merbridge_lab.labs.embedded.workload import EmbeddedWorkload
from merbridge_lab.shortage import unread
from merbridge_lab.starting import Starting
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from merbridge_lab.bench.pod_sets import PodSets
    from merbridge_lab.dataplane import Profile
    from merbridge_lab.dial_results import Dial
    from merbridge_lab.lab import Workload
    from merbridge_lab.labs.embedded.pod import Pod
    from merbridge_lab.observation import Observation
    from merbridge_lab.requirements import Requirement


def _own(workload: Workload) -> EmbeddedWorkload:
    """Return a workload with this lab's type: steps pass back workloads that they got from the lab."""
    return cast("EmbeddedWorkload", workload)


class EmbeddedLab(LabBase):
    """The Lab protocol over the kernel of this machine; `keep` leaves rules flushed after a flush.

    `pods` is how many pods it has, those of the walkthrough included (default: as many as it was made with).
    """

    name = "embedded"
    follows_original = False
    capabilities = EmbeddedDataplane.capabilities | {DIALS, APP_REPORTS_PEER}

    def __init__(
        self,
        *,
        name: str = topology.NAME,
        keep: bool = False,
        backend: str = "nft",
        profile: Profile | None = None,
        pods: int | None = None,
    ) -> None:
        super().__init__(keeps_flushed=keep)
        self.machine = Machine(name)
        self._keep = keep
        self._backend = backend
        node = Node(self.machine, backend)
        self._node = node
        count = pods or pod_count.kept(self.machine)
        self._is_count_given = pods is not None
        self._mesh = Mesh(self.machine, node, (*topology.pods(backend), *topology.replicas(count, backend)))
        self.dataplane = EmbeddedDataplane(self.machine, self._mesh, profile)
        self.node = NodeComponent(self.machine, node, count)
        self.mesh = MeshComponent(self._mesh, self.workloads, self.machine.saved, self.dataplane.pause_altered)

    # -- the walkthrough's nouns --------------------------------------------------------------------------------------

    def workloads(self) -> list[EmbeddedWorkload]:
        """Return the pods of the walkthrough."""
        return [EmbeddedWorkload(self.machine, pod, keep=self._keep) for pod in self._mesh.walkthrough]

    def replicas(self) -> Sequence[Pod]:
        """Return the other pods of the mesh, which no step is about."""
        return self._mesh.replicas

    def workload(self, name: str) -> EmbeddedWorkload:
        """Return a workload by name. Raise LabError for one that does not exist."""
        found = {workload.name: workload for workload in self.workloads()}
        if name not in found:
            raise UsageError(f"there is no workload called {name!r}; there are {', '.join(found)}")
        return found[name]

    @contextlib.contextmanager
    def control_client(self, of: str = "sleep", *, sidecar: bool = True) -> Iterator[Starting[EmbeddedWorkload]]:
        """Begin a copy of `of` outside the dataplane's cgroup, for the duration of the block."""
        spec = topology.control_client(self.workload(of).pod.spec, 0 if sidecar else 1, sidecar=sidecar)
        with control_pods.made(self.machine, self._node, spec) as starting:
            yield Starting(lambda: starting.ready()[0])

    @contextlib.contextmanager
    def control_pair(self) -> Iterator[Starting[ControlPair]]:
        """Begin a client and a server outside the dataplane's cgroup, for the duration of the block."""
        with control_pods.made(self.machine, self._node, *topology.control_pair(self._backend)) as starting:

            def ready() -> ControlPair:
                client, server = starting.ready()
                return ControlPair(client, server, f"http://{topology.TWIN_SERVICE}:{topology.HTTP_PORT}/hello")

            yield Starting(ready)

    @contextlib.contextmanager
    def bench_pods(self, *, direct: bool) -> Iterator[PodSets]:
        """Create the bench pods beside the lab's own, for the duration of the block; see bench_pods.made.

        Raise LabError if the dataplane is not attached.
        """
        if not self.dataplane.attached:
            raise LabError("the eBPF dataplane is not attached", hint="merlab up", id="dataplane.incomplete")
        with bench_pods.made(self.machine, self._node, self.dataplane, backend=self._backend, direct=direct) as made:
            yield made

    def servers(self) -> list[EmbeddedWorkload]:
        """Return the workloads behind the service helloworld."""
        return [workload for workload in self.workloads() if workload.pod.spec.app == "helloworld"]

    def flushable_servers(self) -> contextlib.AbstractContextManager[ServerGroup]:
        """Return its own servers: the pods of this lab are there to be flushed."""
        return contextlib.nullcontext(ServerGroup(self.servers()))

    def drain_idle_connections(self) -> bool:
        """Wait until the idle connections of the sidecars have closed; return whether all did."""
        return self.dataplane.drain_idle_connections()

    def observe(
        self,
        client: Workload,
        *,
        count: int = 4,
        trace: bool = False,
        url: str = HELLO,
        servers: Sequence[Workload] = (),
        logged: bool = True,
    ) -> Observation:
        """Send requests as the app of `client` and read all evidence around them; see batch_guard.batch."""
        own = _own(client)
        answering = list(map(_own, servers)) or self.servers()
        with (
            batch_guard.batch(self.machine, self.dataplane, own.pod, *(each.pod for each in answering)),
            self.dataplane.evidence(trace=trace) as evidence,
        ):
            return http_client.observe(
                own,
                answering,
                evidence,
                url=url,
                count=count,
                between=[self._node.netns],
                logged=logged,
            )

    def dial(self, client: Workload) -> Sequence[Dial]:
        """Dial as the app of `client` in ways that curl does not, and return what eBPF records of each."""
        own = _own(client)
        with batch_guard.batch(self.machine, self.dataplane, own.pod, *(each.pod for each in self.servers())):
            return dialing.dial(own, self.dataplane.pairs, self.dataplane.legs)

    def watched(self) -> contextlib.AbstractContextManager[Callable[[], list[str]]]:
        """Watch what is added and removed in the network namespaces; see namespace_watch.watched."""
        return self._mesh.watched()

    def logged(self, nonces: Iterable[str]) -> list[str]:
        """Return the access log lines of all sidecars that mention one of `nonces`. Raises UnreadError."""
        wanted = tuple(nonces)
        found = []
        for log in (self.machine.run / "pods").glob("*/access.log"):
            try:
                told = lines_of(logs.tail(log))
            except OSError as error:
                raise UnreadError(
                    unread(f"envoy:{log.parent.name}/access", error, f"{log}: {error.strerror}")
                ) from error
            found += [f"{log.parent.name}: {line}" for line in told if any(nonce in line for nonce in wanted)]
        return found

    def fingerprint(self) -> dict[str, str]:
        """Return what must not change during a proof.

        The caller reads the dataplane once more later: by then, it is known what its programs must be.
        """
        self.dataplane.recompile(proof=True)
        rules = iptables.snapshot(self._node.netns)
        found = {"the rules of the node": f"{rules.generation} {rules.fingerprint('nat')}"}
        for workload in self.workloads():
            found[f"the app of {workload.name}"] = str(workload.pod.app_pid)
            found[f"the sidecar of {workload.name}"] = str(workload.pod.sidecar_pid)
            found[f"the nat rules of {workload.name}"] = workload.rules.snapshot().fingerprint("nat")
        return found | self.dataplane.fingerprint()

    def trace_command(self) -> str:
        """Return the command that a person would type to read the dataplane's trace."""
        return self.dataplane.trace_command()

    def why_missing(self, capability: str) -> str:
        """Describe why a capability is missing."""
        return self.dataplane.why_missing(capability)

    def requirements(self) -> list[Requirement]:
        """Probe what this machine offers and lacks."""
        from merbridge_lab import requirements

        return requirements.embedded(backend=self._backend)

    def require_able(self) -> None:
        """Raise LabError if this machine lacks something; name the first thing and the command that fixes it."""
        for lacking in self.requirements():
            if lacking.verdict == Verdict.FAIL.value:
                raise lacking.error()

    def inventory(self) -> list[CommandTranscript]:
        """Return maps, programs and cgroup attachments; nothing if bpftool is not installed."""
        if shutil.which("bpftool") is None:
            return []
        return [CommandTranscript(pasteable(argv), run(argv, ok=range(256)).stdout) for argv in self._inventory()]

    def inventory_commands(self) -> list[str]:
        """Return the commands that show the same."""
        return [pasteable(argv) for argv in self._inventory()]

    def _inventory(self) -> list[list[str]]:
        tree = ["bpftool", "cgroup", "tree", str(self.machine.cgroup.parent)]
        return [["bpftool", "map"], ["bpftool", "prog"], tree]

    def offline_commands(self) -> None:
        """Return nothing: the names of everything in this lab are fixed."""
