"""The bench pods of the embedded lab: made for a benchmark beside the lab's own pods, which are not touched."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab import istio_facts, ruleset, signals
from merbridge_lab.adapters import cgroup, http_probe, iptables, tcp_sockets
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.command import run
from merbridge_lab.adapters.files import delete, write_atomic
from merbridge_lab.bench import generators, scenarios
from merbridge_lab.bench.generators import Place
from merbridge_lab.bench.model import Way
from merbridge_lab.bench.pod_sets import DIRECT_SLOT, SLOTS, Readings
from merbridge_lab.errors import LabError
from merbridge_lab.labs import sidecar_counts
from merbridge_lab.labs.embedded import control_pods, envoy, namespaces, topology
from merbridge_lab.labs.embedded.rule_templates import data, template
from merbridge_lab.polling import poll_until
from merbridge_lab.text import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from merbridge_lab.adapters.tcp_sockets import Connection
    from merbridge_lab.bench.pod_sets import PodSets
    from merbridge_lab.labs.embedded.dataplane import EmbeddedDataplane
    from merbridge_lab.labs.embedded.host import Machine
    from merbridge_lab.labs.embedded.node import Node
    from merbridge_lab.labs.embedded.pod import Pod

_REPORT, _UNREAD, _SERVER, _LOG, _LOAD = "report.lua", "unread.py", "server.yaml", "server.log", "load.log"
#: Seconds for servers to answer, for older connections to close, and for a background load to end.
_READY, _RUN_OUT, _SETTLED = 10.0, 5.0, 10.0
#: Seconds that it takes to remove the pods.
_REMOVAL = 2.0
#: In the pod's own /dev/shm, which goes with it.
_H2LOAD_LOG = "/dev/shm/h2load.log"  # noqa: S108 - the pod's own


@dataclass(frozen=True)
class BenchPodSet:
    """A client and a server, as they are in the kernel."""

    machine: Machine
    client: Pod
    server: Pod
    dataplane: EmbeddedDataplane

    @property
    def place(self) -> Place:
        """Where the generators find the server and their files."""
        folder = self.client.folder
        ports = (topology.HTTP_PORT, topology.BULK_PORT, topology.UNREAD_PORT)
        return Place(self.server.spec.ip, *ports, str(folder / _REPORT), str(folder / _UNREAD), _H2LOAD_LOG)

    def furnish(self) -> None:
        """Write the files of generators and server, and start the servers; do not wait for them. Raises LabError."""
        write_atomic(self.client.folder / _REPORT, data("bench/report.lua"))
        for pod in (self.client, self.server):
            write_atomic(pod.folder / _UNREAD, data("app/unread.py"))
        bodies = {}
        for path, size in scenarios.BODIES.items():
            file = self.server.folder / f"body-{size}"
            write_atomic(file, "m" * size)
            bodies[path] = file
        values = {"port": topology.HTTP_PORT, "bodies": bodies, "largest": max(scenarios.BODIES.values())}
        write_atomic(self.server.folder / _SERVER, template("envoy/bench_server.yaml.j2", **values))
        envoys = [str(self.machine.run / "envoy"), "--config-path", str(self.server.folder / _SERVER)]
        self._serve([*envoys, "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"])
        self._serve(["iperf3", "--server", "--port", str(topology.BULK_PORT)])
        unread = [str(self.server.folder / _UNREAD), "listen", str(topology.UNREAD_PORT), str(generators.UNREAD_HOLD)]
        self._serve(["/usr/bin/python3", "-I", "-S", "-B", *unread])

    def _serve(self, argv: Sequence[str]) -> None:
        self._daemon(self.server, argv, _LOG)

    def _daemon(self, pod: Pod, argv: Sequence[str], log: str) -> None:
        with change("start a process"):
            run(
                namespaces.as_daemon(
                    pod.cgroup / "app", pod.netns, pod.mntns, topology.APP_ID, pod.folder / log, list(argv)
                )
            )

    def wait_ready(self) -> None:
        """Wait until the server answers. Raise LabError with its log if it does not."""
        netns = self.server.netns
        awaiting = f"the server of {self.server.spec.name} to answer"
        if not poll_until(
            lambda: http_probe.says_ok(netns, topology.HTTP_PORT, scenarios.SMALL), timeout=_READY, awaiting=awaiting
        ):
            log = self.server.folder / _LOG
            said = envoy.last_words(log)
            raise LabError(f"{awaiting}: not within {_READY:g} s", hint="merlab down", stderr=said, id="sidecar.failed")

    # -- PodSet -------------------------------------------------------------------------------------------------------

    def run(self, argv: Sequence[str], timeout: float) -> str:
        """Run `argv` as the client's app and return its output; it may end by SIGINT. Raises LabError."""
        return run(self.client.argv_as_app(argv), timeout=timeout, ok=(0, 128 + signal.SIGINT)).stdout

    def start(self, argv: Sequence[str]) -> None:
        """Start `argv` as the client's app in the background; it ends by itself. Raises LabError."""
        delete(self.client.folder / _LOAD)
        self._daemon(self.client, argv, _LOAD)

    def settle(self) -> str:
        """Wait until what `start` started has ended, and return its output. Raises LabError."""
        app = self.client.app_pid
        awaiting = f"the load in {self.client.spec.name} to end"
        if not poll_until(
            lambda: set(cgroup.processes(self.client.cgroup / "app")) <= {app}, timeout=_SETTLED, awaiting=awaiting
        ):
            raise LabError(f"{awaiting}: not within {_SETTLED:g} s", hint="merlab down", id="tool.failed")
        log = self.client.folder / _LOAD
        try:
            return read_text(log) if log.exists() else ""
        except OSError as error:
            raise _unread(f"what the load in {self.client.spec.name} reports", str(error)) from error

    def read(self) -> Readings:
        """Return what is known of the set now. Raise LabError if something could not be read."""
        pods = (self.client, self.server)
        try:
            used = sum(cgroup.cpu_seconds(pod.cgroup) for pod in pods)
        except (OSError, KeyError, ValueError) as error:
            raise _unread("the processor time of the bench pods", str(error)) from error
        if not self.client.spec.sidecar:
            return Readings(used, None, None, 0, {})
        client, server = (sidecar_counts.read(pod.netns, pod.spec.name) for pod in pods)
        return Readings(used, client, server, _redirected(self.client), self._ebpf())

    def _ebpf(self) -> Mapping[str, int]:
        return self.dataplane.counters().get(self.client.spec.name, {})

    def connections(self) -> int:
        """Return how many connections its sidecars have with each other and with the apps. Raises LabError."""
        found = 0
        for pod in (self.client, self.server):
            try:
                found += sum(map(_is_requests, tcp_sockets.established(pod.netns)))
            except OSError as error:
                raise _unread(f"the connections in {pod.spec.name}", str(error)) from error
        return found


def _redirected(pod: Pod) -> int:
    rules = ruleset.parse(iptables.save(pod.netns, pod.spec.backend, "nat"))
    return sum(rule.packets for rule in rules if rule.chain == "ISTIO_REDIRECT" and "-j REDIRECT" in rule.spec)


def _is_requests(connection: Connection) -> bool:
    """Report whether a sidecar has this connection for requests, and not with itself, to tell whether it is ready."""
    admin = f":{istio_facts.ADMIN_PORT}"
    ends = (connection.local, connection.remote)
    return connection.uid == istio_facts.SIDECAR_UID and not any(end.endswith(admin) for end in ends)


def _unread(what: str, why: str) -> LabError:
    return LabError(f"{what} could not be read: {why}", hint="merlab status", id="reading.failed")


class EmbeddedBenchPods:
    """All sets of a benchmark on the embedded lab."""

    def __init__(self, machine: Machine, dataplane: EmbeddedDataplane, sets: Mapping[str, BenchPodSet]) -> None:
        self._machine, self._dataplane = machine, dataplane
        self.sets: Mapping[str, BenchPodSet] = sets
        self.removal = _REMOVAL
        self._enrolled: str | None = None

    @property
    def machine(self) -> Mapping[str, str]:
        """What the lab knows of the machine and of itself."""
        legs = "all" if self._dataplane.legs.into_app else "safe"
        return {"lab": "embedded", "kernel": os.uname().release, "legs": legs, "server": "Envoy (direct response)"}

    def enrol(self, slot: str | None) -> None:
        """Have eBPF serve exactly this set, and wait until no set has a connection from before. Raises LabError."""
        if slot == self._enrolled:
            return
        changed = [self.sets[each] for each in (slot, self._enrolled) if each is not None]
        with signals.shielded():
            self._dataplane.forget_beside(topology.BENCH_NAMES)
            self._enrolled = None
            if slot is not None:
                self._dataplane.serve_beside([self.sets[slot].server, self.sets[slot].client])
                self._enrolled = slot
        awaiting = "the sidecars' older connections to run out"
        if not poll_until(
            lambda: not any(each.connections() for each in changed), timeout=_RUN_OUT, awaiting=awaiting, every=0.05
        ):
            raise LabError(f"{awaiting}: not within {_RUN_OUT:g} s", hint="merlab down", id="lab.disturbed")

    def used(self) -> float:
        """Return the seconds of processor time that the whole lab has used. Raises LabError."""
        try:
            return cgroup.cpu_seconds(self._machine.cgroup)
        except (OSError, KeyError, ValueError) as error:
            raise _unread("the processor time of the lab", str(error)) from error

    def way(self, slot: str) -> Way:
        """Return how the set goes now."""
        if slot == DIRECT_SLOT:
            return Way.DIRECT
        return Way.EBPF if slot == self._enrolled else Way.RULES


@contextlib.contextmanager
def made(
    machine: Machine, node: Node, dataplane: EmbeddedDataplane, *, backend: str, direct: bool
) -> Iterator[EmbeddedBenchPods]:
    """Create the bench pods for the block's duration. Raises LabError, ClaimFailedError, OSError."""
    slots = dict(zip(SLOTS, topology.BENCH_SLOTS, strict=True))
    if direct:
        slots[DIRECT_SLOT] = topology.BENCH_DIRECT
    specs = [spec for slot in slots.values() for spec in topology.bench_pods(slot, backend)]
    with control_pods.made(machine, node, *specs) as starting:
        pods = [workload.pod for workload in starting.ready()]
        pairs = zip(pods[::2], pods[1::2], strict=True)
        sets = {
            slot: BenchPodSet(machine, client, server, dataplane)
            for slot, (client, server) in zip(slots, pairs, strict=True)
        }
        for each in sets.values():
            each.furnish()
        for each in sets.values():
            each.wait_ready()
        try:
            yield EmbeddedBenchPods(machine, dataplane, sets)
        finally:
            with signals.shielded():
                dataplane.forget_beside(topology.BENCH_NAMES)


if TYPE_CHECKING:
    _KEEPS_TO: type[PodSets] = EmbeddedBenchPods
