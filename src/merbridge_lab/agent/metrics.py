"""The agent's numbers for Prometheus, read from the pinned maps when somebody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from merbridge_lab.agent import agent_status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client import Metric

    from merbridge_lab.agent.agent_status import Sources

#: What counters are called in the maps, and as metrics: the label that tells one from another, and its value.
_LEGS = ("outbound", "mesh", "inbound")
_WAYS = {"redirected": "ebpf", "tcp": "tcp"}
#: What the programs see of TCP: they run when a socket of the sockhash sends.
_SEEN = (
    "By TCP, only sockets that eBPF may move messages from or to are counted: the kernel runs no program for others,"
    " such as those of legs that a pod does not have, and connections that the rules decide about."
)
_AGAIN = (
    "By TCP, bytes are counted when they are given to it: where it takes only some of them, the rest is counted again"
    " when it is sent again."
)
_POD = ["namespace", "pod"]


class _Numbers(Collector):
    def __init__(self, sources: Sources, events: Mapping[Any, int]) -> None:
        self._sources, self._events = sources, events

    def collect(self) -> Iterator[Metric]:
        status = agent_status.status(self._sources)
        yield GaugeMetricFamily("merlab_agent_ready", "Is every pod served, or is there a reason?", status["ready"])
        yield GaugeMetricFamily(
            "merlab_agent_redirecting",
            "1 while messages are redirected; 0 if redirecting is switched off, or nothing is loaded.",
            int(bool(status["redirecting"])),
        )
        yield GaugeMetricFamily(
            "merlab_agent_runtime_answers",
            "0 while the container runtime does not answer the agent.",
            int(status["running"] and status["runtime"] is None),
        )
        yield GaugeMetricFamily("merlab_agent_generation", "The generation of the agent.", status["generation"])
        pods = GaugeMetricFamily("merlab_pods", "Pods of the node, by their state.", labels=["state"])
        for state in ("served", "refused", "pending"):
            pods.add_metric([state], sum(pod["state"] == state for pod in status["pods"]))
        yield pods
        refused = GaugeMetricFamily(
            "merlab_pods_left_to_rules", "Pods left to the rules, by reason.", labels=["reason"]
        )
        for reason, number in status["refused"].items():
            refused.add_metric([reason], number)
        yield refused
        events = CounterMetricFamily(
            "merlab_pod_events",
            "Kubernetes Events on pods: created; repeated, of an agent before; failed, and tried again; refused by the"
            " API server; dropped, as there were too many pods.",
            labels=["result"],
        )
        for result, number in self._events.items():
            events.add_metric([result], number)
        yield events
        yield from _counted(agent_status.counters(self._sources))


def _counted(counters: dict[str, dict[str, int]]) -> Iterator[Metric]:
    by_leg, by_reason = [*_POD, "leg", "way"], [*_POD, "reason"]
    connections = CounterMetricFamily(
        "merlab_connections", "Connections that eBPF intercepted when they were dialled.", labels=[*_POD, "leg"]
    )
    messages = CounterMetricFamily("merlab_messages", f"Messages sent, by leg and way. {_SEEN}", labels=by_leg)
    sizes = CounterMetricFamily("merlab_bytes", f"Bytes sent, by leg and way. {_SEEN} {_AGAIN}", labels=by_leg)
    passed = CounterMetricFamily(
        "merlab_tcp_messages", f"Messages left to TCP although they could be redirected, by reason. {_SEEN}",
        labels=by_reason,
    )  # fmt: skip
    sizes_passed = CounterMetricFamily("merlab_tcp_bytes", f"The bytes of these messages. {_AGAIN}", labels=by_reason)
    others = CounterMetricFamily("merlab_events", "What else the programs count.", labels=[*_POD, "event"])
    families = {"messages": messages, "bytes": sizes}
    for name, values in counters.items():
        pod = list(name.partition("/")[::2])
        for counter, number in values.items():
            leg, _, what = counter.partition("_")
            way, _, unit = what.rpartition("_")
            if leg in _LEGS and what == "connects":
                connections.add_metric([*pod, leg], number)
            elif leg in _LEGS and way in _WAYS:
                families[unit].add_metric([*pod, leg, _WAYS[way]], number)
            elif leg == "passed":
                passed.add_metric([*pod, what], number)
            elif leg == "tcp":
                sizes_passed.add_metric([*pod, what.removeprefix("bytes_")], number)
            else:
                others.add_metric([*pod, counter], number)
    yield from (connections, messages, sizes, passed, sizes_passed, others)


def text(sources: Sources, events: Mapping[Any, int]) -> Callable[[], bytes]:
    """Return a function that reads the numbers of a node, and returns them as Prometheus reads them.

    `events` has how many Kubernetes Events came to which end.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Numbers(sources, events))
    return lambda: generate_latest(registry)
