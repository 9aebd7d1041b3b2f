"""How a pod's namespace is entered: with the node's own tools, or those of a helper pod if the node has none."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from merbridge_lab import polling
from merbridge_lab.adapters import kubernetes_api, kubernetes_exec
from merbridge_lab.adapters.command import Result, pasteable
from merbridge_lab.adapters.procfs import started
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import diagnostics, manifests, topology
from merbridge_lab.text import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from merbridge_lab.adapters.kubernetes_api import Api
    from merbridge_lab.labs.kubernetes.provider import Node, NodeImages
    from merbridge_lab.labs.kubernetes.settings import Settings

_TIMEOUT = 30.0
#: How long a command is retried if the API breaks off or does not answer, in seconds.
_PATIENCE = 30.0
#: How long the helper may take to start, in seconds; its image is Istio's proxy, which is on the node already.
_STARTS = 60.0
#: The label of the helpers that merlab creates for the duration of a command; a helper that one creates by hand has
#: none.
_PASSING = "merlab.io/passing"
_TOOLS = "command -v nsenter && command -v ip && { command -v iptables-nft-save || command -v iptables-legacy-save; }"


class NodeExec(Protocol):
    """Runs commands where all processes of a node are visible, and `topology.STATE` is the node's."""

    @property
    def node(self) -> Node:
        """The node."""

    def execute(self, argv: Sequence[str], *, ok: Sequence[int] = (0,)) -> Result:
        """Run a command. Raise LabError if it ends with a status that is not in `ok`."""

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Return the command that a program uses to run `argv` there on our terminal."""

    def shell_command(self, argv: Sequence[str]) -> str:
        """Return the command that a person uses to run `argv` there."""


@dataclass(frozen=True)
class NodeToolsExec:
    """Uses the node's own tools."""

    node: Node

    def execute(self, argv: Sequence[str], *, ok: Sequence[int] = (0,)) -> Result:
        """Run a command on the node."""
        return self.node.execute(argv, timeout=_TIMEOUT, ok=ok)

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Return the command that a program uses to run `argv` there on our terminal."""
        return self.node.argv(argv)

    def shell_command(self, argv: Sequence[str]) -> str:
        """Return the command that a person uses to run `argv` there."""
        return self.node.shell_command(argv)


@dataclass(frozen=True)
class HelperPodExec:
    """Uses the helper pod's tools, through the API: `pod` is this merlab's own, and is removed when merlab ends."""

    api: Api
    node: Node
    pod: str

    def execute(self, argv: Sequence[str], *, ok: Sequence[int] = (0,)) -> Result:
        """Run a command in the helper; retry if the API does not report how it ended.

        So a command may run twice, and must then have the same effect. An API that fails briefly between a flush and
        its end does not leave rules flushed: the code that flushes and restores is shielded from signals, and this
        retries until its deadline.
        """
        answer = polling.retrying(
            lambda: kubernetes_exec.execute(self.api, topology.HELPERS, self.pod, "helper", argv, _TIMEOUT),
            on=kubernetes_api.ApiUnavailableError,
            timeout=_PATIENCE,
            awaiting="the cluster's API to answer",
        )
        told = Result(self.shell_command(argv), *answer)
        if told.status not in ok:
            raise LabError(
                f"{argv[0]} failed with exit status {told.status} in the pod {topology.HELPER}",
                command=told.command,
                stderr=told.stderr.strip(),
                id="tool.failed",
            )
        return told

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Return the command that a program uses to run `argv` there on our terminal: it needs kubectl."""
        return self._kubectl(["--kubeconfig", self.api.kubeconfig_file], ["-i", "-t"], self.pod, argv)

    def shell_command(self, argv: Sequence[str]) -> str:
        """Return the command that a person uses to run `argv` in their own helper pod (`merlab manifests helper`)."""
        return pasteable(self._kubectl(["--context", self.api.context], [], topology.HELPER, argv))

    @staticmethod
    def _kubectl(cluster: list[str], options: list[str], pod: str, argv: Sequence[str]) -> list[str]:
        return ["kubectl", *cluster, "-n", topology.HELPERS, "exec", *options, pod, "--", *argv]


def have_tools(node: Node) -> bool:
    """Report whether a node has the tools to enter pods itself."""
    return node.execute(["sh", "-c", _TOOLS], ok=range(256)).status == 0


def make(api: Api, node: Node, settings: Settings, images: NodeImages) -> HelperPodExec:
    """Create a helper for as long as this merlab runs, and wait until it runs, too. Raises LabError."""
    sweep(api)
    name = f"{topology.HELPER}-{os.getpid()}"
    for document in manifests.objects("helper", settings):
        meta = document["metadata"]
        owner = {_PASSING: "true", **_owner(os.getpid())}
        api.apply({**document, "metadata": {**meta, "name": name, "labels": {**meta["labels"], **owner}}})
    where = kubernetes_api.path("Pod", name, topology.HELPERS)
    if not polling.poll_until(
        lambda: _runs(api.find(where)), timeout=_STARTS, every=0.3, awaiting=f"the pod {name} to run"
    ):
        found = diagnostics.diagnose([one] if (one := api.find(where)) else [], _STARTS, images, now=True)
        remove(api, name)
        why = f": {found.what}" if found else ""
        raise LabError(
            f"the node has no iptables or nsenter, and the pod {name} that has did not run{why}",
            hint=f"kubectl -n {topology.HELPERS} get events",
            id="node.no_tools",
        )
    return HelperPodExec(api, node, name)


def remove(api: Api, name: str = topology.HELPER) -> None:
    """Remove a helper, by default the one that a person creates; succeed if there is none."""
    api.delete(kubernetes_api.path("Pod", name, topology.HELPERS), grace=0)


def sweep(api: Api) -> None:
    """Remove the helpers of merlabs that were killed. Raises LabError."""
    here = _owner(os.getpid())
    for pod in api.all("Pod", topology.HELPERS, f"{_PASSING}=true"):
        labels = pod["metadata"].get("labels") or {}
        # If it runs in another PID namespace, nothing is known about it here, unless the machine was started since.
        if labels.get(_BOOT) != here[_BOOT] or (labels.get(_SPACE) == here[_SPACE] and not _lives(labels)):
            remove(api, pod["metadata"]["name"])


_BOOT, _SPACE, _PID, _BEGAN = (f"merlab.io/owner-{name}" for name in ("boot", "pids", "pid", "began"))


def _owner(pid: int) -> dict[str, str]:
    """Identify a process uniquely: by boot, PID namespace, PID, and start time. Raise OSError for one that is gone."""
    stat = read_text(Path(f"/proc/{pid}/stat"))
    return {
        _BOOT: Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip(),
        _SPACE: str(Path("/proc/self/ns/pid").stat().st_ino),
        _PID: str(pid),
        _BEGAN: str(started(stat)),
    }


def _lives(labels: Mapping[str, str]) -> bool:
    pid = labels.get(_PID, "")
    try:
        return pid.isdecimal() and _owner(int(pid))[_BEGAN] == labels.get(_BEGAN)
    except (FileNotFoundError, ProcessLookupError):
        return False


def _runs(found: Mapping[str, Any] | None) -> bool:
    statuses = found["status"].get("containerStatuses") or [] if found else []
    return bool(statuses) and all("running" in (status.get("state") or {}) for status in statuses)
