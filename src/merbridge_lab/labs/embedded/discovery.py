"""Discovery in the embedded lab: its pods are the endpoints, read from the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters import netns
from merbridge_lab.dataplane import Endpoint, Sidecar
from merbridge_lab.istio_facts import SIDECAR_UID

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from merbridge_lab.dataplane import Legs
    from merbridge_lab.labs.embedded.pod import Pod


class EmbeddedDiscovery:
    """Finds the endpoints among the pods of the lab, whether they exist yet or not; `legs` decides what they have."""

    def __init__(self, pods: Sequence[Pod], legs: Callable[[], Legs]) -> None:
        self._pods, self._legs = pods, legs

    def endpoints(self) -> list[Endpoint]:
        """Return every pod as it is at this moment."""
        return [_endpoint(pod, self._legs()) for pod in self._pods]


def _endpoint(pod: Pod, legs: Legs) -> Endpoint:
    pid = pod.sidecar_pid
    return Endpoint(
        namespace="",
        name=pod.spec.name,
        uid=_uid(pod),
        ip=pod.spec.ip,
        netns=pod.netns,
        cgroup=pod.cgroup,
        sidecar=None if pid is None else Sidecar(pid, SIDECAR_UID),
        legs=legs,
    )


def _uid(pod: Pod) -> str:
    """Identify the pod by the cookie of its network namespace, which ends with it: no cookie is used twice."""
    try:
        return str(netns.cookie(pod.netns))
    except OSError:
        return ""  # it does not exist, or its namespace cannot be entered: whoever needs that reports it
