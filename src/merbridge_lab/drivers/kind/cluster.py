"""The cluster as a part of the lab: a node that is a container, the API on it, a network of its own."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab import waiting
from merbridge_lab.adapters import docker, kind, kube
from merbridge_lab.adapters.proc import pasteable
from merbridge_lab.drivers.kind import failure, kept, layout, manifests, trouble
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Reading
from merbridge_lab.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.adapters.docker import Container
    from merbridge_lab.drivers.kind.access import Access

_LABEL = f"{kind.LABEL}={layout.CLUSTER}"
_NETWORK_LABEL = f"{layout.NETWORK_LABEL}={layout.CLUSTER}"
#: How long a cluster may take to answer after it was started, in seconds.
_STARTED = 120.0
#: How long one that never was ready may take to be, before it is made anew: kind may have been killed half-way.
_HALF_MADE = 60.0
#: A file on the node that says that the cluster has been ready once; it stays as long as the node.
_MADE = "/kind/merlab-was-ready"
#: What kind takes off the only node of a cluster, among the last things it does: with it no pod finds a place.
_TAINT = "node-role.kubernetes.io/control-plane"


def nodes() -> list[Container]:
    """List the containers of the cluster, whoever made it. Raises LabError where Docker does not answer."""
    return docker.containers(_LABEL)


def are_ours(found: list[Container]) -> bool:
    """Whether merlab made them: its configuration gave them a mount that no other has."""
    return bool(found) and all(layout.MARK in container.mounts for container in found)


def own_network() -> bool:
    """Whether there is a network that merlab made."""
    labels = docker.network_labels(layout.NETWORK)
    return labels is not None and labels.get(layout.NETWORK_LABEL) == layout.CLUSTER


def exists() -> bool:
    """Whether anything of the lab's is there: nodes, a network, a kind that a killed merlab left at work."""
    return are_ours(nodes()) or own_network() or bool(kind.at_work(layout.CLUSTER))


def foreign() -> LabError:
    """Give the error for a cluster of that name that is not merlab's."""
    return LabError(
        f"there is a kind cluster called {layout.CLUSTER} already, and merlab did not make it: it stays untouched",
        hint=f"{pasteable(kind.delete_argv(layout.CLUSTER))}  # if you do not need it",
    )


def requirement() -> list[Requirement]:
    """Say whether the cluster's name is free, or merlab's; nothing where Docker does not tell."""
    try:
        found = nodes()
    except LabError:
        return []
    needed = f"no foreign cluster called {layout.CLUSTER}"
    if found and not are_ours(found):
        return [Requirement("cluster.name", "fail", foreign().what, needed, foreign().hint)]
    said = f"{layout.CLUSTER} is merlab's" if found else f"{layout.CLUSTER} is free"
    return [Requirement("cluster.name", "pass", said, needed)]


class NodePart:
    """The cluster; `changed` is called when it was made or started, `keep` has `remove` leave it."""

    def __init__(self, access: Access, changed: Callable[[], None], *, kubeconfig: str | None, keep: bool) -> None:
        self._access, self._api, self._changed = access, access.api, changed
        self._kubeconfig, self._keep = kubeconfig, keep

    # -- looking ----------------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """Say what is not as `ensure` makes it. Raises LabError where Docker does not answer."""
        return self._of_cluster() or self._not_exported()

    def _of_cluster(self) -> list[str]:
        found = nodes()
        if not found:
            return [f"there is no kind cluster called {layout.CLUSTER}"]
        if not are_ours(found):
            return [foreign().what]
        if other := self._access.other_image():
            return [other]
        stopped = [f"the container {node.name} is {node.state}, not running" for node in found if not node.running]
        return stopped or self._silent() or self._not_ready()

    def _silent(self) -> list[str]:
        try:
            api = self._api()
        except kind.UnfinishedError as error:
            return [error.what]
        return [] if api.ready() else [f"the API of {layout.CLUSTER} at {api.server} is not ready"]

    def _not_exported(self) -> list[str]:
        if not self._kubeconfig:
            return []
        there = kind.context_in(self._kubeconfig, layout.CLUSTER)
        if there is not None and there == kind.kubeconfig_of(layout.CLUSTER)["clusters"][0]["cluster"]:
            return []
        return [f"{self._kubeconfig} does not have the context {layout.CONTEXT} as it is now"]

    def _not_ready(self) -> list[str]:
        sentences = []
        for node in self._api().get("/api/v1/nodes")["items"]:
            states = {one["type"]: one for one in node["status"].get("conditions") or []}
            if states.get("Ready", {}).get("status") != "True":
                said = states.get("Ready", {}).get("message", "it has not said so")
                sentences.append(f"the node {node['metadata']['name']} is not ready: {said}")
            if any(taint["key"] == _TAINT for taint in node["spec"].get("taints") or []):
                sentences.append(f"the node {node['metadata']['name']} takes no pods: it has the taint {_TAINT}")
        names = self._api().find(kube.path("Deployment", "coredns", "kube-system"))
        if names is None or not names["status"].get("availableReplicas"):
            sentences.append("no name is resolved in the cluster: coredns is not available")
        return sentences

    def readings(self) -> tuple[Reading, ...]:
        """Name the containers and their state."""
        return tuple(Reading(f"docker:{node.name}", "", None, f"{node.state}, {node.image}") for node in nodes())

    # -- making -----------------------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Make the cluster, or start it, and wait until it is ready. Raises LabError."""
        if self._kubeconfig:
            kind.context_in(self._kubeconfig, layout.CLUSTER)  # a file that is none is told of before anything is made
        self._await_orphan()
        found = nodes()
        if found and not are_ours(found):
            raise foreign()
        if other := self._access.other_image():
            again = pasteable(["merlab", "up", "--lab", "kind", "--kind-image", str(self._access.asked_image)])
            raise LabError(other, hint=f"merlab down --lab kind && {again}")
        for node in found:
            if not node.running:
                docker.start(node.name)
        self._changed()
        if found and not self._was_made() and not self._comes_up():
            self._delete()
            found = []
        if not found:
            self._create()
        self._changed()
        self._await_ready()
        docker.execute(self._access.node(), ["touch", _MADE])
        if self._kubeconfig:
            self._export(self._kubeconfig)

    @staticmethod
    def _export(kubeconfig: str) -> None:
        """Put the context into a kubeconfig, noted before so that `down` knows of it. Raises LabError."""
        path = str(Path(kubeconfig).absolute())
        try:
            kept.note_kubeconfig(path)
        except OSError as error:
            raise LabError(
                f"that the context goes into {path} cannot be noted in {kept.folder()}: {error.strerror}",
                hint="export XDG_STATE_HOME=/var/lib",
            ) from error
        kind.export(layout.CLUSTER, path)

    @staticmethod
    def _await_orphan() -> None:
        """Let a kind that a killed merlab left at work come to its end: two at once would undo each other's work."""
        waiting.until(
            lambda: not kind.at_work(layout.CLUSTER),
            timeout=_STARTED,
            every=0.5,
            awaiting="kind, which a merlab that was killed had started, to end",
        )
        for pid in kind.at_work(layout.CLUSTER):
            kind.end(pid, layout.CLUSTER)
        kind.sweep()

    def _was_made(self) -> bool:
        """Whether the cluster has been ready once. One that has is the user's, and is never made anew unasked."""
        return docker.execute(self._access.node(), ["test", "-e", _MADE], ok=(0, 1)).status == 0

    def _comes_up(self) -> bool:
        """Whether one that never was ready becomes so; a kind that was killed leaves half a Kubernetes, or none."""
        try:
            self._api()
        except kind.UnfinishedError:
            return False

        def ready() -> bool:
            try:
                return not self._of_cluster()
            except LabError:
                return False

        awaited = f"the cluster {layout.CLUSTER}, whose making was cut short, to become ready"
        return bool(waiting.until(ready, timeout=_HALF_MADE, every=0.5, awaiting=awaited))

    def _create(self) -> None:
        settings = self._access.settings()
        settings.require_fit()
        image, network = settings.kind_image, self._network()
        if not docker.has_image(image):
            with waiting.during(f"docker pulls {image} from {docker.registry(image)}"):
                docker.pull(image)
        if network == layout.NETWORK and docker.network_labels(network) is None:
            docker.create_network(network, _NETWORK_LABEL)
        try:
            with waiting.during(f"kind makes the cluster {layout.CLUSTER} of {image}"):
                kind.create(layout.CLUSTER, image, manifests.text("kind", settings), network=network)
        except LabError as error:
            told = failure.not_made(error, image, failure.kubelets_journal(nodes()))
            with contextlib.suppress(LabError):  # the next up does it, or down
                self._discard()
            raise told from error

    def _discard(self) -> None:
        """Delete what kind left of a cluster that it could not make."""
        if are_ours(nodes()):
            self._delete()
        if not nodes() and own_network():
            docker.remove_network(layout.NETWORK)

    @staticmethod
    def _network() -> str:
        return os.environ.get(kind.NETWORK) or layout.NETWORK

    def _await_ready(self) -> None:
        last: list[str] = []

        def ready() -> bool:
            last[:] = self._of_cluster()
            return not last

        awaited = f"the cluster {layout.CLUSTER} to be ready"
        if not waiting.until(ready, timeout=_STARTED, every=0.5, awaiting=awaited):
            events = trouble.told(self._api().events("kube-system")) if self._api().ready() else ""
            raise LabError(
                f"the cluster was not ready within {_STARTED:.0f} s: {last[0]}",
                hint="merlab down --lab kind && merlab up --lab kind",
                stderr=events or None,
            )

    # -- removing ---------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Delete the cluster and its network, if they are merlab's; nothing to delete is fine. Raises LabError."""
        for pid in kind.at_work(layout.CLUSTER):
            kind.end(pid, layout.CLUSTER)
        kind.sweep()
        if self._keep:
            return
        if are_ours(nodes()):
            self._delete()
        if own_network():
            docker.remove_network(layout.NETWORK)
        kept.forget()

    def _delete(self) -> None:
        with waiting.during(f"kind deletes the cluster {layout.CLUSTER}"):
            # Never one that the cluster names: whoever may write there would have root change a file here.
            told = {str(Path(each).absolute()) for each in (self._kubeconfig, kept.kubeconfig()) if each}
            done = kind.delete(layout.CLUSTER, None)
            for kubeconfig in sorted(told):
                kind.delete(layout.CLUSTER, kubeconfig)
        left = nodes()
        if left:  # kind may fail over a kubeconfig that it cannot read
            docker.remove([node.name for node in left])
        if nodes():
            raise LabError(
                f"the cluster {layout.CLUSTER} could not be deleted", command=done.command, stderr=done.stderr
            )

    # -- as a person would type it ----------------------------------------------------------------------------------

    def typed(self) -> list[str]:
        """Give the commands a person would type to make it."""
        create = pasteable(kind.create_argv(layout.CLUSTER, self._access.likely().kind_image))
        network = self._network()
        own = [pasteable(docker.network_argv(network, _NETWORK_LABEL))] if network == layout.NETWORK else []
        return [
            *own,
            f"merlab manifests kind | {kind.NETWORK}={network} {create}",
            *([pasteable(kind.export_argv(layout.CLUSTER, self._kubeconfig))] if self._kubeconfig else []),
        ]
