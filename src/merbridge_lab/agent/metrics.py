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
    connections = CounterMetricFamily(
        "merlab_connections", "Connections that eBPF intercepted when they were dialled.", labels=[*_POD, "leg"]
    )
    messages = CounterMetricFamily(
        "merlab_redirected_messages", "Messages moved from socket to socket.", labels=[*_POD, "leg"]
    )
    moved = CounterMetricFamily("merlab_redirected_bytes", "Bytes moved from socket to socket.", labels=[*_POD, "leg"])
    passed = CounterMetricFamily("merlab_tcp_messages", "Messages that went by TCP.", labels=[*_POD, "reason"])
    others = CounterMetricFamily("merlab_events", "What else the programs count.", labels=[*_POD, "event"])
    for name, values in counters.items():
        pod = list(name.partition("/")[::2])
        for counter, number in values.items():
            leg, _, what = counter.partition("_")
            if leg in _LEGS and what == "connects":
                connections.add_metric([*pod, leg], number)
            elif leg in _LEGS and what == "redirected_messages":
                messages.add_metric([*pod, leg], number)
            elif leg in _LEGS and what == "redirected_bytes":
                moved.add_metric([*pod, leg], number)
            elif leg == "passed":
                passed.add_metric([*pod, what], number)
            else:
                others.add_metric([*pod, counter], number)
    yield from (connections, messages, moved, passed, others)


def text(sources: Sources, events: Mapping[Any, int]) -> Callable[[], bytes]:
    """Return a function that reads the numbers of a node, and returns them as Prometheus reads them.

    `events` has how many Kubernetes Events came to which end.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Numbers(sources, events))
    return lambda: generate_latest(registry)
