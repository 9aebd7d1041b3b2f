"""Serve pods one at a time: for the embedded lab, and for an agent on a node of a cluster.

Programs and maps are loaded once. Each pod has links of its own, to its cgroup and its network namespace, so that it
comes and goes without touching another's. What is served is in the kernel: another process continues with it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab.dataplane import attach, detach_pod, garbage, health, map_readings, program_list, trace_ring
from merbridge_lab.dataplane import upgrade as upgrading
from merbridge_lab.dataplane.detach import Detached, detach
from merbridge_lab.dataplane.endpoint_health import entries_problems, links_problems
from merbridge_lab.dataplane.endpoints import address
from merbridge_lab.dataplane.map_readings import Pair, reading
from merbridge_lab.dataplane.pins import Pins
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from merbridge_lab.dataplane.endpoints import Endpoint
    from merbridge_lab.dataplane.recompiled import Recompiled
    from merbridge_lab.trace_event import TraceEvent


@dataclass(frozen=True)
class Served:
    """A pod that is served, as pins and maps tell of it; all but its uid is empty if only links are left of it.

    `netns` is the cookie of its network namespace, `cgroup` the id of its cgroup.
    """

    namespace: str
    name: str
    uid: str
    ip: str
    netns: int
    cgroup: int


class Reconciler:
    """Everything pinned below one directory on a bpffs: pods are served and forgotten one at a time.

    Whoever uses it makes sure that nobody else does at the same time; the trace may have several readers.
    """

    def __init__(self, pins: Path) -> None:
        self._pins = Pins(pins)

    def install(self, recompiled: Recompiled | None = None) -> None:
        """Load programs and maps, or adopt the pins of this version, or begin to take over from another one.

        Pins of this version that are broken are replaced; then nothing is served until `serve`. Pods that another
        version serves stay with it until `serve` takes each over, without a gap; `settle` ends that. Redirecting that
        is switched off stays so. Raise UnsupportedFeatureError for a feature that this kernel lacks; LabError.
        """
        attach.install(self._pins, recompiled)

    def serve(self, endpoint: Endpoint) -> None:
        """Serve a pod: attach what is missing, recreate what is broken, leave the rest alone.

        Another pod that had its address, or its uid, is forgotten. Raise LabError with the reason; then nothing of the
        pod is attached.
        """
        attach.serve(self._pins, endpoint)

    def forget(self, uid: str) -> None:
        """Detach a pod, alone, and remove all that is kept for it; the pod may be gone. Raises LabError.

        Its connections continue by TCP. Succeed if it is not served.
        """
        with reading(self._pins):
            detach_pod.forget(self._pins, uid)

    def settle(self, namespaces: Mapping[int, Path] | None = None) -> None:
        """End a takeover, and remove what belongs to no pod: to be called when every pod has been served.

        With the `namespaces` of all pods, by cookie, also remove what the maps hold for connections that are gone, and
        correct their counts; to be repeated now and then. Raises LabError.
        """
        with reading(self._pins):
            upgrading.finish(self._pins)
            detach_pod.sweep(self._pins)
            trace_ring.sweep(self._pins)
            if namespaces is not None:
                garbage.collect(self._pins, namespaces)

    def served(self) -> dict[str, Served]:
        """Return the pods that are served, by uid. Raises LabError."""
        with reading(self._pins):
            found = {uid: Served("", "", uid, "", 0, 0) for uid in (self._pins.uids() if self._pins.readable else ())}
        for cookie, pod in map_readings.pods(self._pins).items():
            place = (address(pod["ip4"]), cookie, pod["cgroup"])
            found[pod["id"]] = Served(pod["namespace"], pod["name"], pod["id"], *place)
        return found

    def problems(self, endpoint: Endpoint) -> list[str]:
        """List every way in which a pod is not served as it should be; nothing means healthy."""
        found = links_problems(self._pins, endpoint)
        try:
            return found + entries_problems(self._pins, endpoint)
        except OSError as error:
            return [*found, str(unread(f"what the maps hold for {endpoint.name}", error))]

    def programs_problems(self) -> list[str]:
        """List what is wrong with the programs and maps that all pods share: `install` repairs it."""
        try:
            return health.objects_problems(self._pins)
        except OSError as error:
            return [str(unread(f"the dataplane below {self._pins.root}", error))]

    @property
    def is_loaded(self) -> bool:
        """Report whether anything is pinned, complete or not."""
        return self._pins.any

    @property
    def attached(self) -> bool:
        """Report whether any pod is served. Raises LabError."""
        return bool(self.served())

    @property
    def redirecting(self) -> bool:
        """Report whether messages are redirected and new connections intercepted, by any version. Raises LabError."""
        with reading(self._pins):
            configs = [self._pins.config()]
            with contextlib.suppress(FileNotFoundError):
                configs.append(upgrading.old(self._pins).config())
            return any(config["redirect"] and config["intercept"] for config in configs)

    @redirecting.setter
    def redirecting(self, on: bool) -> None:
        """Switch both, for all pods, in one write. Off: messages go by TCP, new connections are left to the rules.

        During a takeover the previous version is switched, too: it has the pods that were not taken over yet.
        """
        with reading(self._pins):
            with contextlib.suppress(FileNotFoundError):
                upgrading.old(self._pins).configure(redirect=int(on), intercept=int(on))
            self._pins.configure(redirect=int(on), intercept=int(on))

    @property
    def debug(self) -> bool:
        """Report whether the programs tell what they do to all who read the trace. Raises LabError."""
        with reading(self._pins):
            return bool(self._pins.config()["debug"])

    @debug.setter
    def debug(self, on: bool) -> None:
        with reading(self._pins):
            self._pins.configure(debug=int(on))

    def follow_trace(self) -> Iterator[TraceEvent | None]:
        """Yield the events of all pods as they arrive; see trace_ring.follow."""
        return trace_ring.follow(self._pins, self)

    def batch_trace(self) -> AbstractContextManager[Callable[[], tuple[TraceEvent, ...]]]:
        """Return what reads the events around a batch of requests; see trace_ring.of_batch."""
        return trace_ring.of_batch(self._pins)

    def remove(self, timeout: float) -> Detached:
        """Detach every pod and leave no pin. Sockets that have not read everything within `timeout` s stay redirected.

        Those keep the programs loaded until they are closed, and lose nothing. Succeed if nothing is attached.
        """
        return detach(self._pins, timeout)

    def counters(self) -> dict[str, dict[str, int]]:
        """Return every counter of every pod served, by uid. Raises LabError."""
        uids = {cookie: str(pod["id"]) for cookie, pod in map_readings.pods(self._pins).items()}
        counted = map_readings.counters(self._pins)
        return {uid: counted[cookie] for cookie, uid in uids.items() if cookie in counted}

    def pairs(self) -> list[Pair]:
        """Return the live connections that are carried; pods are named NAMESPACE/NAME. Raises LabError."""
        return map_readings.pairs(self._pins)

    def programs(self) -> list[program_list.ProgramInfo]:
        """List the loaded programs and where each is attached. Raises LabError."""
        with reading(self._pins):
            return program_list.programs(self._pins)

    def links(self) -> dict[str, str]:
        """Return the identity of each pinned link, and what runs where, by name. Raises LabError."""
        with reading(self._pins):
            links = program_list.links(self._pins)
        return {name: f"link {link.id}, program {link.prog_id}, on {link.target}" for name, link in links.items()}

    def forget_all_but(self, uids: Iterable[str]) -> None:
        """Forget every pod that is served and not among these. Raises LabError."""
        for uid in self.served().keys() - set(uids):
            self.forget(uid)
