"""What the kernel reports about a batch of requests: run counts, original destinations, the trace."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from merbridge_lab import istio_facts
from merbridge_lab.adapters import bpf_syscall, kubernetes_api
from merbridge_lab.evidence import Unread, value_of
from merbridge_lab.interception import Counters
from merbridge_lab.labs.kubernetes.dataplanes import node_trace
from merbridge_lab.merbridge import evidence as upstream
from merbridge_lab.merbridge import kernel_objects, trace
from merbridge_lab.shortage import taken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from merbridge_lab.adapters.kubernetes_api import Api
    from merbridge_lab.interception import Interception
    from merbridge_lab.labs.kubernetes.dataplanes.node_view import NodeView
    from merbridge_lab.labs.kubernetes.workload import KubernetesWorkload
    from merbridge_lab.observation import Batch
    from merbridge_lab.trace_event import TraceEvent

#: The ports where upstream sends what an app says to its sidecar, and one sidecar to another.
_OUTBOUND, _INBOUND = istio_facts.OUTBOUND_PORT, istio_facts.INBOUND_PORT
#: Kinds of lines that name a destination.
_DIALS = ("connect", "sidecar_connect", "elsewhere")


class Watch:
    """What is read around a batch, in the kernel of the node `place`, of the programs and maps of `state`.

    `take` reads and removes the lines of the trace; `limits` are the legs that upstream is known not to accelerate;
    `meant` returns the addresses that requests go to.
    """

    def __init__(
        self,
        place: NodeView,
        state: kernel_objects.State,
        take: Callable[[], list[str]],
        limits: Mapping[str, str],
        meant: Callable[[], frozenset[str]],
    ) -> None:
        self._place, self._state, self._take = place, state, take
        self._limits, self._meant = limits, meant
        self._before: Mapping[str, Mapping[str, int]] | Unread = {}

    def begin(self) -> None:
        """Take the readings from before the first request; what is in the trace by now is discarded."""
        taken("trace", self._events)
        self._before = taken("bpf:counters", self._counters)

    def trace(self) -> tuple[TraceEvent, ...] | Unread:
        """Return the events since `begin`, without those of who dialled elsewhere. Raises LabError."""
        events = taken("trace", self._events)
        return events if isinstance(events, Unread) or not events else of_requests(events, self._meant())

    def interception(self, batch: Batch) -> Interception:
        """Take the readings from after the last request, and return the record."""
        counters = Counters(self._before, taken("bpf:counters", self._counters))
        destinations = taken("bpf:pair_original_dst", lambda: self._destinations(batch))
        return upstream.interception(batch, destinations, counters, self._limits)

    def _counters(self) -> Mapping[str, Mapping[str, int]]:
        """Return how often each program has run, on the whole node."""
        return {"node": kernel_objects.runs(self._state)}

    def _events(self) -> tuple[TraceEvent, ...]:
        """Read and remove the lines. Raise LabError if it is not known which of them are of this node."""
        events = [event for line in self._take() if (event := trace.parse(line)) is not None]
        own = self._place.cgroup_path
        return tuple(event for event in events if not node_trace.is_elsewhere(event.pid, own))

    def _destinations(self, batch: Batch) -> dict[str, dict[str, str]]:
        """Look up every connection of every request in the map of original destinations. Raises UnreadError."""
        client_log, server_log = value_of(batch.client_log), value_of(batch.server_log)
        found: dict[str, dict[str, str]] = {}
        for exchange in batch.exchanges:
            # Of the address that the request was sent to, curl reports only the IP: the port that it names is the
            # URL's.
            sidecar = f"{exchange.remote.rpartition(':')[0]}:{_OUTBOUND}"
            dialled = {"outbound": (exchange.local, sidecar)}
            if (line := client_log.get(exchange.nonce)) is not None:
                host = line.upstream_host.rpartition(":")[0]
                dialled["mesh"] = (line.upstream_local, f"{host}:{_INBOUND}")
            if (entry := server_log.get(exchange.nonce)) is not None:
                dialled["inbound"] = (entry[1].upstream_local, entry[1].upstream_host)
            legs = {leg: self._wanted(*places) for leg, places in dialled.items()}
            found[exchange.nonce] = {leg: wanted for leg, wanted in legs.items() if wanted}
        return found

    def _wanted(self, source: str, dialled: str) -> str | None:
        # A "-" in a log is not an address.
        with contextlib.suppress(OSError, ValueError):
            return kernel_objects.wanted(self._state, source, dialled)
        return None


@contextlib.contextmanager
def watching(
    place: NodeView,
    state: kernel_objects.State,
    *,
    limits: Callable[[], Mapping[str, str]],
    meant: Callable[[], frozenset[str]],
) -> Iterator[Watch]:
    """Count runs, and collect the trace in a buffer of our own, for the duration of the block. Raises LabError."""
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, bpf_syscall.enable_stats())
        take = stack.enter_context(node_trace.collecting(place)).drain
        yield Watch(place, state, take, limits(), meant)


def of_requests(events: Sequence[TraceEvent], places: frozenset[str]) -> tuple[TraceEvent, ...]:
    """Drop lines of those who dialled elsewhere.

    `places` are the addresses, with or without port, that the requests went to.
    """
    return tuple(
        event
        for event in events
        if event.kind not in _DIALS or event.ip in places or f"{event.ip}:{event.port}" in places
    )


def destinations(api: Api, servers: Sequence[KubernetesWorkload]) -> frozenset[str]:
    """Return the addresses that requests go to: the service's, and those of the pods behind it. Raises LabError."""
    service = api.get(kubernetes_api.path("Service", "helloworld"))["spec"]["clusterIP"]
    return frozenset({service, *(one.pod.ip for one in servers)})
