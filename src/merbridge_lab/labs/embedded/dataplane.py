"""Our own dataplane on the pods of the embedded lab, with its trace."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import asdict
from typing import TYPE_CHECKING

from merbridge_lab import dataplane, istio_facts, polling, signals
from merbridge_lab.adapters import tcp_sockets
from merbridge_lab.dataplane import reader_legs, socket_filters
from merbridge_lab.dataplane.evidence import CounterEvidence
from merbridge_lab.dataplane.roles import ROLES
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import NOT_COMPARED, Reading
from merbridge_lab.lab import CONTROL_CLIENT, DATAPLANE, DEBUG_TOGGLE, INBOUND_WITHOUT_RULES, TRACE
from merbridge_lab.labs.embedded import topology
from merbridge_lab.labs.embedded.discovery import EmbeddedDiscovery, endpoint_of, left_to_rules, uid_at
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from merbridge_lab.labs.dataplane_strategy import DataplaneStrategy
    from merbridge_lab.labs.embedded.host import Machine
    from merbridge_lab.labs.embedded.mesh import Mesh, Pod
    from merbridge_lab.trace_event import TraceEvent

#: How long `remove` waits until redirected bytes are read, in seconds; the pods end right after.
_DRAIN = 0.5
#: How long `ensure` waits for older connections to close, in seconds: sidecars keep idle ones for one second.
_RUN_OUT = 3.0
#: Seconds for a pod to be ready again after a restart.
_READY = 20.0


class EmbeddedDataplane:
    """The dataplane as a component of the lab, and what it brings to it (DataplaneStrategy)."""

    name, roles = "merlab", ROLES
    capabilities = frozenset({DATAPLANE, INBOUND_WITHOUT_RULES, DEBUG_TOGGLE, TRACE, CONTROL_CLIENT})

    def __init__(self, machine: Machine, mesh: Mesh, profile: dataplane.Profile | None = None) -> None:
        self._machine = machine
        self._mesh = mesh
        around = dataplane.Around(
            (machine.mesh_cgroup, machine.cgroup / "twins"), ((topology.NODE, machine.netns(topology.NODE)),)
        )
        self._manager = dataplane.Dataplane(machine.bpffs / machine.name, around)
        self._profile = profile
        self._may_be_altered = False
        self.discovery: dataplane.Discovery = EmbeddedDiscovery(mesh.pods, lambda: self.legs)

    @functools.cached_property
    def legs(self) -> dataplane.Legs:
        """The legs that its pods have: as they are served now, unless another profile is asked for.

        By default all: the apps are the lab's own, and work with redirected messages. Raises LabError.
        """
        served, wanted = self._manager.legs(), self._profile
        if served and wanted in (None, dataplane.Profile.ALL if served.into_app else dataplane.Profile.SAFE):
            return served
        try:
            return reader_legs.for_profile(wanted or dataplane.Profile.ALL)
        except OSError as error:
            raise LabError(
                str(unread("what this kernel does to sockets of apps", error)),
                hint="merlab doctor",
                id="reading.failed",
            ) from error

    def ensure(self) -> None:
        """Attach what is missing, and wait until the connections that sidecars kept from before have closed.

        Those stay on TCP for their whole life, so the first requests might still use them. If something keeps them
        busy, the wait ends: the checks then report which leg eBPF did not carry.
        """
        self._machine.require_own()
        self._restart_filtered()
        self._manager.attach(self.discovery.endpoints())
        polling.poll_until(
            lambda: not self._older_connections(),
            timeout=_RUN_OUT,
            awaiting="the sidecars' older connections to run out",
        )

    def serve_beside(self, pods: Sequence[Pod]) -> None:
        """Serve these pods beside the lab's own, which are not touched. Raises LabError."""
        for pod in pods:
            self._manager.serve_beside(endpoint_of(pod, self.legs))

    def forget_beside(self, names: Collection[str]) -> None:
        """Serve the pods of these names, which may be gone, no more. Raises LabError."""
        if self.attached:
            there = [pin for pin in map(self._machine.netns, names) if pin.exists()]
            # A namespace of the lab's own, pinned by somebody under such a name, is not a pod of these names.
            own = {uid_at(pod.netns) for pod in self._mesh.pods} if there else set()
            self._manager.forget(names, set(map(uid_at, there)) - own)

    def _restart_filtered(self) -> None:
        """Restart apps and sidecars that have a socket filter from somebody: it stays as long as the socket does."""
        for pod in self._mesh.pods:
            for kind, seen in pod.processes.seen().items():
                filtered = False
                with contextlib.suppress(LabError):  # what may not be read, the checks report
                    filtered = any(socket_filters.problems(pod.spec.name, {kind: seen.pid}))
                if filtered:
                    pod.processes.start(kind)
                    pod.wait_ready(_READY)

    def pause_interception(self) -> None:
        """Leave new connections to the rules until `ensure` has repaired the dataplane; leave a complete one alone.

        Whether its programs are those of the source takes a second to compile; `pause_altered` must follow.
        """
        endpoints = self.discovery.endpoints()
        known = self._filters(endpoints) if self.attached else []
        self._manager.pause_interception(endpoints, known)
        self._may_be_altered = self.attached

    def pause_altered(self) -> None:
        """Do the same if a program is not what the source compiles to, once after `pause_interception`."""
        due, self._may_be_altered = self._may_be_altered, False
        if due:
            with signals.shielded():
                self._manager.pause_altered(self.discovery.endpoints)

    def drain_idle_connections(self) -> bool:
        """Wait until the idle connections of the sidecars have closed; return whether all did."""
        return bool(
            polling.poll_until(
                lambda: not any(pair.leg == "mesh" for pair in self._manager.pairs()),
                timeout=_RUN_OUT,
                awaiting="the sidecars' kept connections to run out",
            )
        )

    def pairs(self) -> Sequence[dataplane.Pair]:
        """List the live connections that eBPF carries."""
        return self._manager.pairs()

    def programs(self) -> Sequence[dataplane.ProgramInfo]:
        """List the programs in the kernel and where they are attached."""
        return self._manager.programs()

    def links(self) -> Mapping[str, str]:
        """Return the identity of each link by name; a link that was recreated meanwhile is another one."""
        return self._manager.links()

    def _older_connections(self) -> set[str]:
        """Return, by source, the connections between pods and to apps that eBPF does not carry."""
        addresses = {pod.spec.ip for pod in self._mesh.pods}
        ends = [end for pod in self._mesh.pods for end in tcp_sockets.established(pod.netns)]
        sidecars = (end for end in ends if end.uid == istio_facts.SIDECAR_UID)
        found = {end.local for end in sidecars if end.remote.rpartition(":")[0] in addresses}
        # The dial is visible at the pod of the other end; here it is the accepting side of one of those.
        accepted = {end.local for end in ends if end.local.endswith(f":{istio_facts.INBOUND_PORT}")}
        return found - accepted - {pair.source for pair in self._manager.pairs()}

    def remove(self) -> None:
        """Detach, after what was redirected has been read."""
        if self._machine.exists:
            self._machine.uncover()
            self._manager.detach(_DRAIN)

    def problems(self) -> list[str]:
        """Describe, one sentence each, what differs from what `ensure` creates."""
        endpoints = self.discovery.endpoints()
        found = left_to_rules(endpoints) + self._manager.problems(endpoints)
        return [*found, *self._filters(endpoints)] if self.attached else found

    def _filters(self, endpoints: Sequence[dataplane.Endpoint]) -> list[str]:
        """Describe the socket filters on the sockets of apps and sidecars, and that they could not be read."""
        found: list[str] = []
        for endpoint in endpoints:
            sidecar = None if endpoint.sidecar is None else endpoint.sidecar.pid
            pids = {"app": self._mesh.pod(endpoint.name).app_pid, "sidecar": sidecar}
            try:
                found += socket_filters.problems(
                    endpoint.name, {kind: pid for kind, pid in pids.items() if pid is not None}
                )
            except LabError as error:
                found.append(str(unread(f"whether socket filters are on the sockets of {endpoint.name}", error)))
        return found

    def ours(self) -> frozenset[int]:
        """Return the ids of the programs that run as ours. Raises OSError."""
        return self._manager.ours()

    def recompile(self, *, proof: bool) -> None:
        """Begin to compile the programs' source, so that the next `problems` compares with it. Raises LabError."""
        self._manager.recompile(proof=proof)

    def readings(self) -> tuple[Reading, ...]:
        """List the programs in the kernel and where they are attached, those of others, and what is not compared."""
        own = [
            Reading(f"bpf:{program.name}", "", None, program.attached_to, f"{program.type}, id {program.id}")
            for program in self._manager.programs()
        ]
        others = self._manager.others(self.discovery.endpoints())
        left_out = self._manager.not_compared()
        return (
            *own,
            *(Reading("bpf:others", "", None, each) for each in others),
            *([Reading(f"bpf:{NOT_COMPARED}", "", None, left_out)] if left_out else []),
        )

    @property
    def attached(self) -> bool:
        """Report whether the dataplane intercepts new connections now."""
        return self._manager.attached

    def counters(self) -> Mapping[str, Mapping[str, int]]:
        """Read the counters, pod → decision → number; empty if nothing is attached."""
        return self._manager.counters() if self.attached else {}

    @contextlib.contextmanager
    def evidence(self, *, trace: bool) -> Iterator[CounterEvidence]:
        """Yield what shows what this dataplane does to a batch; with `trace`, also the events of its trace."""
        with contextlib.ExitStack() as reading:
            drain = reading.enter_context(self._manager.batch_trace()) if trace and self.attached else None
            yield CounterEvidence(self.counters, self.legs, drain)

    @staticmethod
    def why_missing(capability: str) -> str:
        """Describe why a capability is missing."""
        return f"the embedded lab has no {capability}"

    def fingerprint(self) -> dict[str, str]:
        """Return the identity of each program and link."""
        programs = {f"the program {each.name}": f"{each.id} {each.attached_to}" for each in self.programs()}
        return programs | {f"the link {name}": link for name, link in self.links().items()}

    def describe(self) -> dict[str, object]:
        """Return its state as `merlab status --json` prints it."""
        attached = self.attached
        programs = len(self.programs()) if attached else 0
        return {"kind": self.name, "attached": attached, "programs": programs, "legs": asdict(self.legs)}

    def dump(self) -> dict[str, Callable[[], object]]:
        """Return its own parts of a sysdump, each with the function that returns its content."""
        return {
            "programs.json": lambda: [asdict(program) for program in self.programs()],
            "counters.json": lambda: dict(self.counters()),
            "pairs.json": lambda: [asdict(pair) for pair in self.pairs()],
        }

    def shell_commands(self) -> list[str]:
        """Return the commands that show what was attached."""
        pods = self._machine.bpffs / self._machine.name / "maps" / "pods"
        return [f"bpftool cgroup tree {self._machine.mesh_cgroup}", f"bpftool map dump pinned {pods}"]

    # -- trace --------------------------------------------------------------------------------------------------------

    @property
    def debug(self) -> bool:
        """Report whether the programs tell all who read the trace what they do."""
        return self.attached and self._manager.debug

    def set_debug(self, *, on: bool) -> None:
        """Switch the trace on or off; off succeeds if nothing is attached. Raises LabError."""
        if on:
            self._manager.debug = True
        elif self.attached:
            # A toggle that cannot be written (a frozen map) is removed with the dataplane, which comes next.
            with contextlib.suppress(LabError):
                self._manager.debug = False

    def debug_commands(self) -> list[str]:
        """Return the command that switches the trace on."""
        config = self._machine.bpffs / self._machine.name / "maps" / "config"
        return [f"bpftool map update pinned {config} key 0 0 0 0 value 1 0 0 0 1 0 0 0 1 0 0 0"]

    @staticmethod
    def debug_shown() -> str:
        """Return nothing: this command prints nothing."""
        return ""

    def trace_command(self) -> str:
        """Return the command that reads the trace: no tool of the system reads ring buffers."""
        named = "" if self._machine.name == topology.NAME else f"MERLAB_NAME={self._machine.name} "
        return f"{named}merlab trace --raw"

    def follow_trace(self) -> Iterator[TraceEvent | None]:
        """Yield the trace's events as they arrive; see trace_ring.follow."""
        return self._manager.follow_trace()


if TYPE_CHECKING:
    _KEEPS_TO: type[DataplaneStrategy] = EmbeddedDataplane
