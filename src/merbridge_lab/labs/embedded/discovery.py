"""Discovery in the embedded lab: its pods are the endpoints, read from the kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from merbridge_lab.adapters import netns, routes
from merbridge_lab.dataplane import Endpoint, Interception, endpoints, istio_annotations
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from merbridge_lab.dataplane import Legs
    from merbridge_lab.dataplane.istio_annotations import Range
    from merbridge_lab.labs.embedded.pod import Pod


class EmbeddedDiscovery:
    """Finds the endpoints among the pods of the lab, whether they exist yet or not; `legs` decides what they have."""

    def __init__(self, pods: Sequence[Pod], legs: Callable[[], Legs]) -> None:
        self._pods, self._legs = pods, legs

    def endpoints(self) -> list[Endpoint]:
        """Return every pod as it is at this moment."""
        return [endpoint_of(pod, self._legs()) for pod in self._pods]


def endpoint_of(pod: Pod, legs: Legs) -> Endpoint:
    """Return a pod as it is at this moment."""
    pid, sidecar = pod.sidecar_pid, None
    annotations = dict(pod.spec.annotations)
    reason = istio_annotations.unsupported(annotations)
    try:
        sidecar = None if pid is None else endpoints.sidecar_of(pid)
    except LabError as unknown:
        reason = reason or unknown.what
    return Endpoint(
        namespace="",
        name=pod.spec.name,
        uid=uid_at(pod.netns),
        ip=pod.spec.ip,
        netns=pod.netns,
        cgroup=pod.cgroup,
        sidecar=sidecar,
        legs=legs,
        interception=Interception() if reason else replace(istio_annotations.parse(annotations), routes=_routes(pod)),
        left_to_rules=reason,
    )


def left_to_rules(endpoints: Sequence[Endpoint]) -> list[str]:
    """Describe which endpoints eBPF does not serve, and why."""
    return [f"{each.name} is left to the rules: {each.left_to_rules}" for each in endpoints if each.left_to_rules]


def _routes(pod: Pod) -> tuple[tuple[Range, bool], ...]:
    try:
        return tuple(routes.routed(pod.netns).items())
    except OSError:
        return ()  # as in uid_at


def uid_at(pin: Path) -> str:
    """Identify the pod by the cookie of its network namespace, which ends with it: no cookie is used twice."""
    try:
        return str(netns.cookie(pin))
    except OSError:
        return ""  # it does not exist, or its namespace cannot be entered: whoever needs that reports it
