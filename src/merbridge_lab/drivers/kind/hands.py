"""By what a pod's namespace is entered: the node's own tools, or those of a helper pod where the node has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from merbridge_lab import waiting
from merbridge_lab.adapters import docker, kube
from merbridge_lab.adapters.proc import Result, pasteable
from merbridge_lab.drivers.kind import layout, manifests, trouble
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.adapters.kube import Api
    from merbridge_lab.drivers.kind.settings import Settings

_TIMEOUT = 30.0
#: How long a command is tried again where the API breaks off or does not answer, in seconds.
_PATIENCE = 30.0
#: How long the helper may take to run, in seconds; its image is Istio's proxy, which is on the node already.
_STARTS = 60.0
_PATH = kube.path("Pod", layout.HELPER, layout.HELPERS)
_TOOLS = "command -v nsenter && command -v ip && { command -v iptables-nft-save || command -v iptables-legacy-save; }"


class Hands(Protocol):
    """Runs commands where all processes of a node are seen, and `layout.STATE` is the node's."""

    @property
    def node(self) -> str:
        """The node's name, which is its container's too."""

    def execute(self, argv: Sequence[str], *, ok: Sequence[int] = (0,)) -> Result:
        """Run a command. Raises LabError when it ends with a status not in `ok`."""

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Give the command by which a program runs `argv` there on our terminal."""

    def typed(self, argv: Sequence[str]) -> str:
        """Give the command by which a person runs `argv` there."""


@dataclass(frozen=True)
class NodesOwn:
    """The node's tools, by docker exec."""

    node: str

    def execute(self, argv: Sequence[str], *, ok: Sequence[int] = (0,)) -> Result:
        """Run a command on the node."""
        return docker.execute(self.node, argv, timeout=_TIMEOUT, ok=ok)

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Give the command by which a program runs `argv` there on our terminal."""
        return docker.exec_argv(self.node, argv, terminal=True)

    def typed(self, argv: Sequence[str]) -> str:
        """Give the command by which a person runs `argv` there."""
        return pasteable(docker.exec_argv(self.node, argv))


@dataclass(frozen=True)
class Helpers:
    """The helper pod's tools, by the API."""

    api: Api
    node: str

    def execute(self, argv: Sequence[str], *, ok: Sequence[int] = (0,)) -> Result:
        """Run a command in the helper; once more where the API does not say how it ended.

        So a command may run twice, and must come to the same then. An API that hiccups between a flush and its end
        does not leave rules flushed: who flushes and restores does so in a shield, and this tries to its deadline.
        """
        answer = waiting.retrying(
            lambda: self.api.execute(layout.HELPERS, layout.HELPER, "helper", argv, _TIMEOUT),
            on=kube.SilentError,
            timeout=_PATIENCE,
            awaiting="the cluster's API to answer",
        )
        told = Result(self.typed(argv), *answer)
        if told.status not in ok:
            raise LabError(
                f"{argv[0]} failed with exit status {told.status} in the pod {layout.HELPER}",
                command=told.command,
                stderr=told.stderr.strip(),
            )
        return told

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Give the command by which a program runs `argv` there on our terminal: it takes kubectl."""
        return self._kubectl(["--kubeconfig", self.api.kubeconfig_file], ["-i", "-t"], argv)

    def typed(self, argv: Sequence[str]) -> str:
        """Give the command by which a person runs `argv` there."""
        return pasteable(self._kubectl(["--context", layout.CONTEXT], [], argv))

    @staticmethod
    def _kubectl(cluster: list[str], options: list[str], argv: Sequence[str]) -> list[str]:
        return ["kubectl", *cluster, "-n", layout.HELPERS, "exec", *options, layout.HELPER, "--", *argv]


def find(api: Api, node: str) -> Hands | None:
    """Give what there is to enter pods with; None where the node has no tools and there is no helper."""
    if docker.execute(node, ["sh", "-c", _TOOLS], ok=range(256)).status == 0:
        return NodesOwn(node)
    return Helpers(api, node) if _runs(api) else None


def make(api: Api, settings: Settings) -> None:
    """Make the helper, and wait until it runs. Raises LabError."""
    for document in manifests.objects("helper", settings):
        api.apply(document)
    if not waiting.until(lambda: _runs(api), timeout=_STARTS, every=0.3, awaiting=f"the pod {layout.HELPER} to run"):
        found = trouble.in_pods([one] if (one := api.find(_PATH)) else [], _STARTS, now=True)
        why = f": {found.what}" if found else ""
        raise LabError(
            f"the node has no iptables or nsenter, and the pod {layout.HELPER} that has did not run{why}",
            hint=f"kubectl --context {layout.CONTEXT} -n {layout.HELPERS} describe pod {layout.HELPER}",
        )


def remove(api: Api) -> None:
    """Remove the helper; none is fine."""
    api.delete(_PATH, grace=0)


def _runs(api: Api) -> bool:
    found = api.find(_PATH)
    statuses = found["status"].get("containerStatuses") or [] if found else []
    return bool(statuses) and all("running" in (status.get("state") or {}) for status in statuses)
