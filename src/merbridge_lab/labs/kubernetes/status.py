"""The state of the lab, for `merlab status`, `merlab steps` and for a sysdump."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from merbridge_lab import hints, redaction
from merbridge_lab.adapters.command import run
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import UnreadError
from merbridge_lab.labs.kubernetes import pods, topology

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from merbridge_lab.adapters.kubernetes_api import Api
    from merbridge_lab.lab import Component, Dataplane
    from merbridge_lab.labs.kubernetes.dataplanes.cluster_dataplane import ClusterDataplane
    from merbridge_lab.labs.kubernetes.node_exec import NodeExec
    from merbridge_lab.labs.kubernetes.provider import ClusterProvider, Node
    from merbridge_lab.labs.kubernetes.settings import Settings
    from merbridge_lab.labs.kubernetes.workload import KubernetesWorkload
    from merbridge_lab.model import Step
    from merbridge_lab.requirements import Requirement

_LAST_REPORT = f"{topology.STATE}/last-report.json"
#: How much of each log a sysdump includes, in lines from its end.
_TAIL = 2000


class Described(Protocol):
    """The parts of a lab whose state is described, and the connection to its cluster."""

    name: str

    @property
    def provider(self) -> ClusterProvider:
        """Who brings the cluster."""

    @property
    def node(self) -> Component:
        """The cluster, and its node."""

    @property
    def mesh(self) -> Component:
        """Istio, and the pods of the walkthrough."""

    @property
    def strategy(self) -> ClusterDataplane:
        """The dataplane that the lab is configured with."""

    @property
    def dataplane(self) -> Dataplane:
        """Its component."""

    @property
    def capabilities(self) -> frozenset[str]:
        """The capabilities of the lab, depending on its dataplane."""

    def api(self) -> Api:
        """Return the cluster's API. Raises LabError."""

    def find_node(self) -> Node:
        """Return the node that the lab's pods are on. Raises LabError."""

    def settings(self) -> Settings:
        """Return the settings of the lab. Raises LabError."""

    def find_node_exec(self) -> NodeExec | None:
        """Return what enters pods, or None. Raises LabError."""

    def workloads(self) -> Sequence[KubernetesWorkload]:
        """Return the workloads of the walkthrough."""

    def requirements(self) -> list[Requirement]:
        """Probe what this machine offers and what it lacks."""

    def why_missing(self, capability: str) -> str:
        """Explain in one sentence why the lab lacks `capability`."""


def is_up(lab: Described) -> bool:
    """Report whether the cluster exists, is the lab's, runs and answers.

    Raise LabError if that cannot be determined.
    """
    if not lab.provider.state().up:
        return False
    try:
        return lab.api().ready()
    except LabError:  # the problems tell why
        return False


def describe(lab: Described) -> dict[str, Any]:
    """Return the state of the lab as `merlab status --json` prints it."""
    up = is_up(lab)
    workloads = lab.workloads() if up and lab.find_node_exec() is not None else []
    described = [told for workload in workloads if (told := _workload(lab, workload)) is not None]
    there = lab.provider.state().usable
    return {
        "schema": 1,
        "lab": lab.name,
        "up": there,
        "workloads": described,
        "dataplane": lab.strategy.describe() if up else {"kind": "none", "attached": False, "programs": 0},
        "path": _path(described, attached=up and lab.dataplane.attached) if len(described) > 1 else [],
        "flushed": [workload.name for workload in workloads if workload.rules.outstanding],
        "problems": _problems(lab, up=up) if there else [],
    }


def _workload(lab: Described, workload: KubernetesWorkload) -> dict[str, Any] | None:
    found = pods.active_pods(lab.api(), workload.spec)
    if not found:
        return None
    pod = found[0]
    told: dict[str, Any] = {"backend": "", "istio_rules": 0}
    pid = None
    try:
        pid = workload.found(refresh=True)[1].pid
        told = workload.rules.snapshot().to_json()
    except LabError:
        pass  # a pod that does not run has neither; the problems tell why
    return {
        "name": workload.name,
        "pid": pid,
        "ip": pod.ip or "0.0.0.0",  # noqa: S104 - "none yet", not an address to bind to
        "sidecar": pod.sidecar_ready,
        "sidecar_kind": pod.sidecar,
        "pod": pod.name,
        "node": pod.node,
        "rules": told,
    }


def _problems(lab: Described, *, up: bool) -> list[str]:
    parts = [lab.node, *([lab.mesh] if up else []), *([lab.dataplane] if up and lab.strategy.intercepts else [])]
    return [sentence for part in parts for sentence in _told(part.problems)]


def _told(problems: Callable[[], list[str]]) -> list[str]:
    """Return a component's problems. A failure to read them is a problem, too, and must not hide those of others."""
    try:
        return problems()
    except LabError as error:
        return [f"{error.what}; {hints.rendered(error.hint)}" if error.hint else error.what]
    except UnreadError as error:
        return [error.cause]


def _path(described: list[dict[str, Any]], *, attached: bool) -> list[dict[str, str]]:
    """Return what brings a new request of sleep from each station to the next; into a pod, its rules always do."""

    def by(pod: dict[str, Any]) -> str:
        if "unread" in pod["rules"]:
            return "what cannot be read"
        return "rules" if pod["rules"]["istio_rules"] else "nothing"

    client, *servers = described
    out = "eBPF" if attached else by(client)
    legs = [{"from": f"{client['name']}'s app", "by": out, "to": f"{client['name']}'s sidecar"}]
    legs += [
        {"from": f"{client['name']}'s sidecar", "by": by(server), "to": f"{server['name']}'s sidecar, then its app"}
        for server in servers
    ]
    return legs


def states(lab: Described, steps: Sequence[Step]) -> list[str]:
    """Return for each step whether what it ensures holds now."""
    up = is_up(lab)
    told = []
    for step in (step.on(lab.capabilities) for step in steps):
        if step.needs - lab.capabilities:
            told.append("skipped")
        elif step.kind.value == "demonstrate":
            told.append("shows")
        elif step.number > 0 and not up:
            told.append("not yet")
        else:
            told.append("holds" if all(check.evaluate(lab).held for check in step.verify) else "does not hold")
    return told


def images(settings: Settings, of_dataplane: Sequence[str]) -> list[str]:
    """Return the images that the lab consists of: the node's, the pods', the dataplane's."""
    return [settings.kind_image, *settings.pod_images(), *of_dataplane]


# -- sysdump -----------------------------------------------------------------------------------------------------------


def keep_report(lab: Described, told: dict[str, Any]) -> None:
    """Write the report of the last run to the node."""
    text = json.dumps(told, default=str)
    write = ["sh", "-c", 'mkdir -p "$1" && cat >"$2"', "sh", topology.STATE, _LAST_REPORT]
    lab.find_node().execute(write, stdin=text)


def _settings(settings: Settings) -> dict[str, Any]:
    """Return the lab's settings; of Istio's settings only the names, since the values may hold anything."""
    return {**asdict(settings), "istio_set": [redaction.setting(one) for one in settings.istio_set]}


def _is_ours(name: str, namespace: str) -> bool:
    """Report whether a pod of this name is the walkthrough's, or of a namespace that holds nobody else's."""
    return namespace != topology.NAMESPACE or any(name.startswith(f"{spec.name}-") for spec in topology.WORKLOADS)


def _pod(pod: dict[str, Any]) -> dict[str, Any]:
    """Return a pod of the walkthrough or the system; of one of the user's own, return only that it exists."""
    about = pod["metadata"]
    if _is_ours(about["name"], about.get("namespace", topology.NAMESPACE)):
        return pod
    return {"metadata": {"name": about["name"]}, "status": {"phase": pod.get("status", {}).get("phase")}}


def _events(namespace: str, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events about what `_is_ours`."""
    about = [(one.get("involvedObject", {}).get("name", ""), one) for one in events]
    return [one for name, one in about if _is_ours(f"{name}-", namespace)]


def dump(lab: Described) -> dict[str, Callable[[], Any]]:
    """Return the parts of a sysdump, each with the function that returns its content; none contains a key."""
    parts: dict[str, Callable[[], Any]] = {
        "doctor.json": lambda: [asdict(requirement) for requirement in lab.requirements()],
        "status.json": lambda: describe(lab),
        "kernel.txt": lambda: run(["uname", "-a"]).stdout,
        **lab.provider.dump(),
        "settings.json": lambda: _settings(lab.settings()),
    }
    if not is_up(lab):
        return parts
    api, node = lab.api(), lab.find_node()
    parts["last-report.json"] = lambda: node.execute(["cat", _LAST_REPORT]).stdout
    for namespace in ("kube-system", topology.ISTIO, topology.NAMESPACE):
        parts[f"{namespace}/pods.json"] = lambda name=namespace: [_pod(one) for one in api.all("Pod", name)]  # type: ignore[misc]
        parts[f"{namespace}/events.json"] = lambda name=namespace: _events(name, api.events(name))  # type: ignore[misc]
    with contextlib.suppress(LabError):  # if nothing can enter pods; status.json tells why
        for workload in lab.workloads():
            parts[f"{workload.name}/rules.txt"] = lambda one=workload: "\n".join(
                map(str, one.rules.snapshot().texts.values())
            )  # type: ignore[misc]
            parts[f"{workload.name}/sidecar.log"] = lambda one=workload: one.logged(_TAIL)  # type: ignore[misc]
    return {**parts, **lab.strategy.dump()}
