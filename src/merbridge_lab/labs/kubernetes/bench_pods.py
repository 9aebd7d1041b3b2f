"""The bench pods of a lab on a cluster: made for a benchmark, in namespaces of their own.

The load comes from this machine's programs, started from here: in a client's cgroup, network and PID namespace, with
this machine's files. So no image is needed for it, and the kernel sees the pod's app. It takes a node of this kernel.
"""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab import istio_facts, signals
from merbridge_lab.adapters import cgroup, http_probe, nftables, tcp_sockets, xtables
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.command import run
from merbridge_lab.adapters.memfd import MemFile
from merbridge_lab.bench import generators, scenarios
from merbridge_lab.bench.generators import Place
from merbridge_lab.bench.model import Way
from merbridge_lab.bench.pod_sets import DIRECT_SLOT, SLOTS, Readings
from merbridge_lab.errors import LabError
from merbridge_lab.labs import sidecar_counts
from merbridge_lab.labs.kubernetes import bench_objects, pod_netns
from merbridge_lab.labs.kubernetes.bench_objects import BULK_PORT, HTTP_PORT, UNREAD_PORT
from merbridge_lab.labs.kubernetes.dataplanes import node_view
from merbridge_lab.labs.kubernetes.settings import DATA
from merbridge_lab.polling import poll_until
from merbridge_lab.text import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from merbridge_lab.bench.pod_sets import PodSets
    from merbridge_lab.labs.kubernetes.connection import Access
    from merbridge_lab.labs.kubernetes.dataplanes.cluster_dataplane import BenchSwitch
    from merbridge_lab.labs.kubernetes.dataplanes.node_view import NodeView
    from merbridge_lab.labs.kubernetes.pods import Pod

#: The user of the load: not the sidecar's, which the rules exempt.
_USER = "65534"
#: Seconds for a set to answer, for older connections to close, and for a background load to end.
_READY, _RUN_OUT, _SETTLED = 30.0, 5.0, 10.0
#: Seconds that it takes to remove the pods: a namespace takes its time.
_REMOVAL = 8.0
_CHAIN = "ISTIO_REDIRECT"
#: Where a load finds its files: as descriptors, whoever may read the folders that merlab is installed in.
_REPORT, _UNREAD, _LOG = (f"/proc/self/fd/{number}" for number in (3, 4, 5))
# Fixed texts; what varies is an argument. The cgroup is joined first: a socket belongs to that of its creator.
_JOIN = 'echo 0 >"$1/cgroup.procs" && exec 3<"$2" 4<"$3" 5<>"$4" && '
_RUN = _JOIN + 'shift 4 && exec "$@"'
_START = _JOIN + 'exec </dev/null >>"$5" 2>&1 && shift 5 && exec setsid --fork "$@"'
_ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LANG=C.UTF-8")


@dataclass(frozen=True)
class BenchPod:
    """A bench pod, as this machine's kernel has it. `app` is the cgroup of its app, `cgroup` the pod's."""

    name: str
    uid: str
    ip: str
    netns: Path
    pidns: Path
    app: Path
    cgroup: Path

    @classmethod
    def find(cls, place: NodeView, access: Access, pod: Pod, slot: str) -> BenchPod:
        """Find the process of its app. Raise LabError if it has no cgroup of its own in version 2's hierarchy."""
        pid = pod_netns.find(access.node_exec(), pod, "app").pid
        own = place.cgroup_folder(pid)
        if pod.uid not in own.parent.name.replace("_", "-"):
            raise LabError(
                f"the pod {pod.name} has no cgroup of its own in version 2's hierarchy, so eBPF cannot serve it",
                hint="merlab doctor",
                id="requirement.missing",
            )
        process = place.process(pid)
        name = f"{bench_objects.NAMESPACES[slot]}/{pod.name}"
        return cls(name, pod.uid, pod.ip, process / "ns/net", process / "ns/pid", own, own.parent)

    def argv(self, script: str, files: Sequence[str], argv: Sequence[str]) -> list[str]:
        """Return what runs `argv` as its app, by one of the scripts above, with the paths of its files."""
        # In its PID namespace it ends with the pod, whatever becomes of merlab.
        into = ["nsenter", f"--net={self.netns}", f"--pid={self.pidns}", f"--setgid={_USER}", f"--setuid={_USER}", "--"]
        return ["sh", "-c", script, "sh", str(self.app), *files, *into, "env", "-i", *_ENVIRONMENT, *argv]


class ClusterPodSet:
    """A client and a server of one set; `address` is where the client finds the server."""

    def __init__(self, client: BenchPod, server: BenchPod, address: str, switch: BenchSwitch, *, meshed: bool) -> None:
        self.client, self.server, self._switch, self._meshed = client, server, switch, meshed
        self.place = Place(address, HTTP_PORT, BULK_PORT, UNREAD_PORT, _REPORT, _UNREAD, _LOG)
        texts = ("bench/report.lua", "app/unread.py")
        self._given = [MemFile((DATA / name).read_bytes()) for name in texts]
        self._log, self._told = MemFile(), MemFile()
        self._own = set(cgroup.processes(client.app))

    @property
    def _files(self) -> list[str]:
        return [each.path for each in (*self._given, self._log)]

    def furnish(self) -> None:
        """Start the servers beside that of the pod; do not wait for them. Raises LabError."""
        unread = [_UNREAD, "listen", str(UNREAD_PORT), str(generators.UNREAD_HOLD)]
        for argv in (
            ["iperf3", "--server", "--port", str(BULK_PORT)],
            ["/usr/bin/python3", "-I", "-S", "-B", *unread],
        ):
            with change("start a process"):
                run(self.server.argv(_START, [*self._files, "/dev/null"], argv))

    def wait_ready(self) -> None:
        """Wait until the server answers the client, through both sidecars if there are any. Raises LabError."""
        awaiting = f"the server of {self.client.name} to answer"
        path, address = scenarios.SMALL, self.place.address
        if not poll_until(
            lambda: http_probe.says_ok(self.client.netns, HTTP_PORT, path, address), timeout=_READY, awaiting=awaiting
        ):
            raise LabError(f"{awaiting}: not within {_READY:g} s", hint="merlab status", id="pod.not_ready")

    # -- PodSet -------------------------------------------------------------------------------------------------------

    def run(self, argv: Sequence[str], timeout: float) -> str:
        """Run `argv` as the client's app and return its output; it may end by SIGINT. Raises LabError."""
        typed = self.client.argv(_RUN, self._files, argv)
        return run(typed, timeout=timeout, ok=(0, 128 + signal.SIGINT)).stdout

    def start(self, argv: Sequence[str]) -> None:
        """Start `argv` as the client's app in the background; it ends by itself. Raises LabError."""
        self._told.clear()
        with change("start a process"):
            run(self.client.argv(_START, [*self._files, self._told.path], argv))

    def settle(self) -> str:
        """Wait until what `start` started has ended, and return its output. Raises LabError."""
        awaiting = f"the load in {self.client.name} to end"
        if not poll_until(
            lambda: set(cgroup.processes(self.client.app)) <= self._own, timeout=_SETTLED, awaiting=awaiting
        ):
            raise LabError(f"{awaiting}: not within {_SETTLED:g} s", hint="merlab restore", id="tool.failed")
        return self._told.read().decode(errors="replace")

    def read(self) -> Readings:
        """Return what is known of the set now. Raise LabError if something could not be read."""
        pods = (self.client, self.server)
        try:
            used = sum(cgroup.cpu_seconds(pod.cgroup) for pod in pods)
            if not self._meshed:
                return Readings(used, None, None, 0, {})
            client, server = (sidecar_counts.read(pod.netns, pod.name) for pod in pods)
            counted = self._switch.counters(self.client.uid)
            return Readings(used, client, server, _redirected(self.client.netns), counted)
        except (OSError, KeyError, ValueError) as error:
            raise _unread(f"what {self.client.name} and its server did", error) from error

    def connections(self) -> int:
        """Return how many connections its sidecars have with each other and with the apps. Raises LabError."""
        ports = tuple(f":{port}" for port in (HTTP_PORT, BULK_PORT, UNREAD_PORT, istio_facts.INBOUND_PORT))
        try:
            found = [each for pod in (self.client, self.server) for each in tcp_sockets.established(pod.netns)]
        except OSError as error:
            raise _unread(f"the connections of {self.client.name}", error) from error
        of_sidecars = [each for each in found if each.uid == istio_facts.SIDECAR_UID]
        return sum(each.local.endswith(ports) or each.remote.endswith(ports) for each in of_sidecars)

    def close(self) -> None:
        """Close its files."""
        for each in (*self._given, self._log, self._told):
            each.close()


def _redirected(netns: Path) -> int:
    """Return how many connections ISTIO_REDIRECT has sent to the sidecar, in either backend. Raises OSError."""
    chains = [chain for chain in nftables.read(netns).chains if chain.name.replace("-", "_").upper() == _CHAIN]
    if chains:
        return sum(chain.packets for chain in chains)
    legacy = [chain for table in xtables.read(netns) for chain in table.chains or () if chain.name == _CHAIN]
    return sum(packets for chain in legacy for _words, packets in chain.told)


def _unread(what: str, error: Exception) -> LabError:
    return LabError(f"{what} could not be read: {error}", hint="merlab status", id="reading.failed")


class ClusterBenchPods:
    """All sets of a benchmark on a cluster."""

    def __init__(self, place: NodeView, switch: BenchSwitch, sets: Mapping[str, ClusterPodSet], lab: str) -> None:
        self._place, self._switch, self._lab = place, switch, lab
        self.sets: Mapping[str, ClusterPodSet] = sets
        self.removal = _REMOVAL
        self._enrolled: str | None = None

    @property
    def machine(self) -> Mapping[str, str]:
        """What the lab knows of the machine and of itself."""
        kernel = read_text(self._place.root / "proc/sys/kernel/osrelease").strip()
        return {"lab": self._lab, "kernel": kernel, "legs": self._switch.legs, "server": "Envoy (direct response)"}

    def enrol(self, slot: str | None) -> None:
        """Have eBPF serve exactly this set, and wait until no set has a connection from before. Raises LabError."""
        changed = [each for each in (slot, self._enrolled) if each is not None and slot != self._enrolled]
        meshed = {each: self.sets[each] for each in SLOTS}
        uids = {name: frozenset((each.client.uid, each.server.uid)) for name, each in meshed.items()}
        with signals.shielded():
            self._switch.serve(slot, uids)
            self._enrolled = slot
        awaiting = "the sidecars' older connections to run out"
        if not poll_until(
            lambda: not any(self.sets[each].connections() for each in changed),
            timeout=_RUN_OUT,
            awaiting=awaiting,
            every=0.05,
        ):
            raise LabError(f"{awaiting}: not within {_RUN_OUT:g} s", hint="merlab restore", id="lab.disturbed")

    def used(self) -> float:
        """Return the seconds of processor time that the whole node has used. Raises LabError."""
        try:
            return cgroup.cpu_seconds(self._place.cgroup)
        except (OSError, KeyError, ValueError) as error:
            raise _unread("the processor time of the node", error) from error

    def way(self, slot: str) -> Way:
        """Return how the set goes now."""
        if slot == DIRECT_SLOT:
            return Way.DIRECT
        return Way.EBPF if slot == self._enrolled else Way.RULES


@contextlib.contextmanager
def made(access: Access, switch: BenchSwitch, *, direct: bool) -> Iterator[ClusterBenchPods]:
    """Create the bench pods for the block's duration. Raises LabError."""
    place, api = node_view.find(access.node()), access.api()
    slots = (*SLOTS, *((DIRECT_SLOT,) if direct else ()))
    bench_objects.remove(api)
    sets: dict[str, ClusterPodSet] = {}
    try:
        for slot, (client, server) in bench_objects.create(access, slots).items():
            found = [BenchPod.find(place, access, pod, slot) for pod in (client, server)]
            # A sidecar knows a server by its service; without one, the address of the pod is the limit.
            address = server.ip if slot == DIRECT_SLOT else bench_objects.address(api, slot)
            sets[slot] = ClusterPodSet(found[0], found[1], address, switch, meshed=slot != DIRECT_SLOT)
        for each in sets.values():
            each.furnish()
        for each in sets.values():
            each.wait_ready()
        yield ClusterBenchPods(place, switch, sets, access.provider.name)
    finally:
        with signals.shielded():
            for each in sets.values():
                each.close()
            bench_objects.remove(api)


if TYPE_CHECKING:
    _KEEPS_TO: type[PodSets] = ClusterBenchPods
