"""The embedded lab: the walkthrough on one machine, made of namespaces, real Envoys and our own dataplane."""

from __future__ import annotations

import contextlib
import json
import shutil
from typing import TYPE_CHECKING, Any

from merbridge_lab import signals
from merbridge_lab.adapters import iptables, netns
from merbridge_lab.adapters.command import pasteable, run
from merbridge_lab.adapters.files import write_atomic
from merbridge_lab.errors import LabError, UsageError
from merbridge_lab.evidence import UnreadError, Verdict
from merbridge_lab.lab import (
    APP_REPORTS_PEER,
    CONTROL_CLIENT,
    DATAPLANE,
    DEBUG_TOGGLE,
    DIALS,
    HELLO,
    INBOUND_WITHOUT_RULES,
    TRACE,
    CommandTranscript,
    ControlPair,
)
from merbridge_lab.labs.embedded import (
    batch_guard,
    control_pods,
    dialing,
    http_client,
    logs,
    saved_rules,
    status,
    topology,
    trace_filter,
)
from merbridge_lab.labs.embedded.components import MeshComponent, NodeComponent
from merbridge_lab.labs.embedded.dataplane import EmbeddedDataplane
from merbridge_lab.labs.embedded.host import Machine
from merbridge_lab.labs.embedded.mesh import Mesh
from merbridge_lab.labs.embedded.node import Node
from merbridge_lab.labs.embedded.workload import EmbeddedWorkload
from merbridge_lab.shortage import unread
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from merbridge_lab.dataplane.trace import TraceEvent
    from merbridge_lab.dial_results import Dial
    from merbridge_lab.model import Step
    from merbridge_lab.observation import Observation
    from merbridge_lab.requirements import Requirement
    from merbridge_lab.ruleset import RuleSet


class EmbeddedLab:
    """The Lab protocol over the kernel of this machine; `keep` leaves rules flushed after a flush."""

    name = "embedded"
    follows_original = False
    capabilities = frozenset(
        {DATAPLANE, DIALS, INBOUND_WITHOUT_RULES, APP_REPORTS_PEER, DEBUG_TOGGLE, TRACE, CONTROL_CLIENT}
    )

    def __init__(self, *, name: str = topology.NAME, keep: bool = False, backend: str = "nft") -> None:
        self.machine = Machine(name)
        self._keep = keep
        self._backend = backend
        node = Node(self.machine, backend)
        self._node = node
        self._mesh = Mesh(self.machine, node, topology.pods(backend))
        self._shown: list[CommandTranscript] = []
        self.dataplane = EmbeddedDataplane(self.machine, self._mesh)
        self.node = NodeComponent(self.machine, node)
        self.mesh = MeshComponent(self._mesh, self.workloads, self.machine.saved)

    # -- the walkthrough's nouns --------------------------------------------------------------------------------------

    def workloads(self) -> list[EmbeddedWorkload]:
        """Return the pods of the walkthrough."""
        return [EmbeddedWorkload(self.machine, pod, keep=self._keep) for pod in self._mesh.pods]

    def workload(self, name: str) -> EmbeddedWorkload:
        """Return a workload by name. Raise LabError for one that does not exist."""
        found = {workload.name: workload for workload in self.workloads()}
        if name not in found:
            raise UsageError(f"there is no workload called {name!r}; there are {', '.join(found)}")
        return found[name]

    @contextlib.contextmanager
    def control_client(self, of: str = "sleep", *, sidecar: bool = True) -> Iterator[EmbeddedWorkload]:
        """Create a copy of `of` outside the dataplane's cgroup, for the duration of the block."""
        spec = topology.control_client(self.workload(of).pod.spec, 0 if sidecar else 1, sidecar=sidecar)
        with control_pods.made(self.machine, self._node, spec) as (control_client,):
            yield control_client

    @contextlib.contextmanager
    def control_pair(self) -> Iterator[ControlPair]:
        """Create a client and a server outside the dataplane's cgroup, for the duration of the block."""
        with control_pods.made(self.machine, self._node, *topology.control_pair(self._backend)) as (client, server):
            yield ControlPair(client, server, f"http://{topology.TWIN_SERVICE}:{topology.HTTP_PORT}/hello")

    def servers(self) -> list[EmbeddedWorkload]:
        """Return the workloads behind the service helloworld."""
        return [workload for workload in self.workloads() if workload.pod.spec.app == "helloworld"]

    @contextlib.contextmanager
    def flushed(self, workloads: Sequence[EmbeddedWorkload]) -> Iterator[dict[str, RuleSet]]:
        """Save and flush nat in all of `workloads` for the duration of the block."""
        with contextlib.ExitStack() as stack:
            yield {workload.name: stack.enter_context(workload.rules.flushed()) for workload in workloads}

    def drain_idle_connections(self) -> bool:
        """Wait until the idle connections of the sidecars have closed; return whether all did."""
        return self.dataplane.drain_idle_connections()

    def observe(
        self,
        client: EmbeddedWorkload,
        *,
        count: int = 4,
        trace: bool = False,
        url: str = HELLO,
        server: EmbeddedWorkload | None = None,
        logged: bool = True,
    ) -> Observation:
        """Send requests as the app of `client` and read all evidence around them; see batch_guard.batch."""
        servers = [server] if server is not None else self.servers()
        with batch_guard.batch(self.machine, self.dataplane, client.pod, *(each.pod for each in servers)):
            return http_client.observe(
                client,
                servers,
                url=url,
                count=count,
                between=[self._node.netns],
                counters=self.dataplane.counters,
                trace=self.dataplane.drain_trace if trace else None,
                logged=logged,
            )

    def dial(self, client: EmbeddedWorkload) -> Sequence[Dial]:
        """Dial as the app of `client` in ways that curl does not, and return what eBPF records of each."""
        with batch_guard.batch(self.machine, self.dataplane, client.pod, *(each.pod for each in self.servers())):
            return dialing.dial(client, self.dataplane.pairs)

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
        for program in self.dataplane.programs():
            found[f"the program {program.name}"] = f"{program.id} {program.attached_to}"
        for name, link in self.dataplane.links().items():
            found[f"the link {name}"] = link
        return found

    def trace_command(self) -> str:
        """Return the command that a person would type to read the dataplane's trace."""
        return self.dataplane.trace_command()

    def why_missing(self, capability: str) -> str:
        """Describe why a capability is missing."""
        return f"the embedded lab has no {capability}"

    def requirements(self) -> list[Requirement]:
        """Probe what this machine offers and lacks."""
        from merbridge_lab import requirements

        return requirements.embedded(backend=self._backend)

    def require_able(self) -> None:
        """Raise LabError if this machine lacks something; name the first thing and the command that fixes it."""
        for lacking in self.requirements():
            if lacking.verdict == Verdict.FAIL.value:
                raise LabError(f"{lacking.name}: found {lacking.found}, needed {lacking.needed}", hint=lacking.hint)

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

    def show(self, command: str, output: str = "") -> None:
        """Record a command that a person would type, with its output."""
        self._shown.append(CommandTranscript(command, output))

    def shown(self) -> Sequence[CommandTranscript]:
        """Return what was recorded since the last call, and clear it."""
        taken, self._shown = self._shown, []
        return taken

    # -- the lab as a whole -------------------------------------------------------------------------------------------

    def present_backend(self) -> str | None:
        """Return the backend that has the rules of the lab that is up; None if no lab is up, or it has no rules."""
        if not netns.is_pinned(self._node.netns):
            return None
        return iptables.backend_of(self._node.netns, "nat")

    def require_up(self) -> None:
        """Raise LabError if no lab is up."""
        if not self.machine.exists:
            raise LabError("no lab is up", hint="merlab up")

    def recover(self) -> None:
        """Clean up what prevents a check of the lab component by component.

        This is: control pods and outstanding flushes of a merlab that was killed; and an incomplete dataplane, which
        would break the requests that test the mesh, long before the dataplane itself is checked.
        """
        with signals.shielded():
            self.machine.uncover()  # first: what is changed next must be the lab's
            self.sweep()
            self.restore()
            if self.dataplane.attached:
                self.dataplane.recompile(proof=False)
            self.dataplane.pause_interception()

    def sweep(self) -> None:
        """Remove what a killed merlab left beside the lab: control pods, and drafts of saves.

        Its flushed rules stay flushed: that may be on purpose (`step 9 --keep`). Covered places are left alone.
        """
        with signals.shielded():
            if not self.machine.covers():
                control_pods.sweep(self.machine, self._node)
                saved_rules.delete_drafts(self.machine.saved)

    def restore(self) -> list[str]:
        """Restore everything that is flushed; return the names of the pods.

        All are tried; then the first error is raised.
        """
        restored: list[str] = []
        first: LabError | None = None
        for workload in self.workloads():
            try:
                restored += [workload.name] if workload.rules.restore() else []
            except LabError as error:
                first = first or error
        if first is not None:
            raise first
        return restored

    @property
    def exists(self) -> bool:
        """Report whether anything of the lab exists."""
        return self.machine.exists

    def remove(self, timeout: float) -> None:
        """Remove everything that is left of the lab, found by its name."""
        self.machine.remove(timeout)

    def stays(self) -> list[str]:
        """Return what `down` leaves on purpose: nothing."""
        return []

    def states(self, steps: Sequence[Step]) -> list[str]:
        """Return for each step whether what it ensures holds now."""
        states = []
        for step in steps:
            if step.kind.value == "demonstrate":
                states.append("shows")
            elif step.number > 0 and not self.machine.exists:
                states.append("not yet")
            else:
                states.append("holds" if all(check.evaluate(self).held for check in step.verify) else "does not hold")
        return states

    def describe(self) -> dict[str, Any]:
        """Return the state of the lab as `merlab status --json` prints it."""
        return status.describe(self)

    def dump(self) -> dict[str, Callable[[], Any]]:
        """Return the parts of a sysdump, each with the function that returns its content; none contains a key."""
        return status.dump(self)

    def keep_report(self, told: dict[str, Any]) -> None:
        """Store the report of the last run beside the lab's other files, for a sysdump."""
        if self.machine.run.is_dir() and self.machine.exists:
            with contextlib.suppress(OSError):
                write_atomic(self.machine.run / status.LAST_REPORT, json.dumps(told, default=str))

    def follow_trace(self, *, pod: str | None = None, nonce: str | None = None) -> Iterator[TraceEvent]:
        """Return the trace's events as they arrive; see trace_filter.follow."""
        return trace_filter.follow(self, pod=pod, nonce=nonce)
