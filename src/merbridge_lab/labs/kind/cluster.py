"""The cluster as a component of the lab: a node that is a container, the API on it, and a network of its own."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab import polling
from merbridge_lab.adapters import docker, kind_cli, kubernetes_api
from merbridge_lab.adapters.command import pasteable
from merbridge_lab.adapters.image_reference import registry
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Reading
from merbridge_lab.labs.kind import create_failure, local_state, names, ownership
from merbridge_lab.labs.kubernetes import diagnostics, manifests

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.adapters.docker import Container
    from merbridge_lab.labs.kubernetes.provider import Connection

#: How long a cluster may take to answer after it was started, in seconds.
_STARTED = 120.0
#: How long a cluster that never was ready may take to become ready before it is recreated: kind may have been killed
#: midway.
_HALF_MADE = 60.0
#: A file on the node that marks that the cluster has been ready once; it stays as long as the node.
_MADE = "/kind/merlab-was-ready"
#: A taint that kind removes from the only node of a cluster, as one of its last actions; with it, no pod can be
#: scheduled.
_TAINT = "node-role.kubernetes.io/control-plane"


class NodeComponent:
    """The cluster. `changed` is called when it was created or started; with `keep`, `remove` leaves it.

    `asked_image` is the node's image that was requested, if any; `kubeconfig` is the file that gets the context.
    """

    def __init__(
        self,
        connection: Connection,
        changed: Callable[[], None],
        *,
        asked_image: str | None = None,
        kubeconfig: str | None = None,
        keep: bool = False,
    ) -> None:
        self._connection, self._api, self._changed = connection, connection.api, changed
        self._asked_image, self._kubeconfig, self._keep = asked_image, kubeconfig, keep

    # -- looking ----------------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """Describe what differs from what `ensure` creates. Raise LabError if Docker does not answer."""
        return self._of_cluster() or self._not_exported()

    def _of_cluster(self) -> list[str]:
        found = ownership.nodes()
        if not found:
            return [f"there is no kind cluster called {names.CLUSTER}"]
        if not ownership.are_ours(found):
            return [ownership.foreign().what]
        if other := self._other_image(found):
            return [other]
        stopped = [f"the container {node.name} is {node.state}, not running" for node in found if not node.running]
        return stopped or self._silent() or self._not_ready()

    def _other_image(self, found: list[Container]) -> str | None:
        """Explain that another node image was requested than the cluster has: it is chosen at creation."""
        asked = self._asked_image
        if asked is None or not ownership.are_ours(found) or found[0].image == asked:
            return None
        return f"the cluster {names.CLUSTER} is there, with a node of {found[0].image}, not {asked}"

    def _silent(self) -> list[str]:
        try:
            api = self._api()
        except kind_cli.IncompleteClusterError as error:
            return [error.what]
        return [] if api.ready() else [f"the API of {names.CLUSTER} at {api.server} is not ready"]

    def _not_exported(self) -> list[str]:
        if not self._kubeconfig:
            return []
        there = kind_cli.context_in(self._kubeconfig, names.CLUSTER)
        if there is not None and there == kind_cli.kubeconfig_of(names.CLUSTER)["clusters"][0]["cluster"]:
            return []
        return [f"{self._kubeconfig} does not have the context {names.CONTEXT} as it is now"]

    def _not_ready(self) -> list[str]:
        sentences = []
        for node in self._api().get("/api/v1/nodes")["items"]:
            states = {one["type"]: one for one in node["status"].get("conditions") or []}
            if states.get("Ready", {}).get("status") != "True":
                said = states.get("Ready", {}).get("message", "it has not reported it")
                sentences.append(f"the node {node['metadata']['name']} is not ready: {said}")
            if any(taint["key"] == _TAINT for taint in node["spec"].get("taints") or []):
                sentences.append(f"the node {node['metadata']['name']} is unschedulable: taint {_TAINT}")
        dns = self._api().find(kubernetes_api.path("Deployment", "coredns", "kube-system"))
        if dns is None or not dns["status"].get("availableReplicas"):
            sentences.append("no name is resolved in the cluster: coredns is not available")
        return sentences

    def readings(self) -> tuple[Reading, ...]:
        """Return the containers and their state."""
        return tuple(
            Reading(f"docker:{node.name}", "", None, f"{node.state}, {node.image}") for node in ownership.nodes()
        )

    # -- making -----------------------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Create the cluster, or start it, and wait until it is ready. Raises LabError."""
        if self._kubeconfig:
            kind_cli.context_in(
                self._kubeconfig, names.CLUSTER
            )  # a file that is no kubeconfig is reported before anything is created
        self._await_orphan()
        found = ownership.nodes()
        if found and not ownership.are_ours(found):
            raise ownership.foreign()
        if other := self._other_image(found):
            again = pasteable(["merlab", "up", "--kind-image", str(self._asked_image)])
            raise LabError(other, hint=f"merlab down && {again}", id="cluster.other_node")
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
        for node in ownership.nodes():
            docker.execute(node.name, ["touch", _MADE])
        if self._kubeconfig:
            self._export(self._kubeconfig)

    @staticmethod
    def _export(kubeconfig: str) -> None:
        """Add the context to a kubeconfig; record which one first, so that `down` knows it. Raises LabError."""
        path = str(Path(kubeconfig).absolute())
        try:
            local_state.note_kubeconfig(path)
        except OSError as error:
            raise LabError(
                f"the note that {path} gets the context cannot be written to {local_state.folder()}: {error.strerror}",
                hint="export XDG_STATE_HOME=/var/lib",
                id="kubeconfig.unusable",
            ) from error
        kind_cli.export(names.CLUSTER, path)

    @staticmethod
    def _await_orphan() -> None:
        """Wait for a kind process that a killed merlab left running: two at once would undo each other's work."""
        polling.poll_until(
            lambda: not kind_cli.at_work(names.CLUSTER),
            timeout=_STARTED,
            every=0.5,
            awaiting="kind, which a merlab that was killed had started, to end",
        )
        for pid in kind_cli.at_work(names.CLUSTER):
            kind_cli.end(pid, names.CLUSTER)
        kind_cli.sweep()

    def _was_made(self) -> bool:
        """Report whether the cluster has been ready once. If so, it is the user's, and is recreated only on request."""
        return all(
            docker.execute(node.name, ["test", "-e", _MADE], ok=(0, 1)).status == 0 for node in ownership.nodes()
        )

    def _comes_up(self) -> bool:
        """Report whether a cluster that never was ready becomes so. A killed kind leaves half a Kubernetes, or none."""
        try:
            self._api()
        except kind_cli.IncompleteClusterError:
            return False

        def ready() -> bool:
            try:
                return not self._of_cluster()
            except LabError:
                return False

        awaited = f"the cluster {names.CLUSTER}, whose set-up did not finish, to become ready"
        return bool(polling.poll_until(ready, timeout=_HALF_MADE, every=0.5, awaiting=awaited))

    def _create(self) -> None:
        settings = self._connection.settings()
        settings.require_fit()
        image, network = settings.kind_image, self._network()
        if not docker.has_image(image):
            with polling.progress(f"docker pulls {image} from {registry(image)}"):
                docker.pull(image)
        if network == names.NETWORK and docker.network_labels(network) is None:
            docker.create_network(network, ownership.NETWORK_LABEL)
        try:
            with polling.progress(f"kind makes the cluster {names.CLUSTER} of {image}"):
                kind_cli.create(names.CLUSTER, image, manifests.text("kind", settings), network=network)
        except LabError as error:
            told = create_failure.not_made(error, image, create_failure.kubelets_journal(ownership.nodes()))
            with contextlib.suppress(LabError):  # the next up does it, or down
                self._discard()
            raise told from error

    def _discard(self) -> None:
        """Delete what kind left of a cluster that it could not create."""
        if ownership.are_ours(ownership.nodes()):
            self._delete()
        if not ownership.nodes() and ownership.own_network():
            docker.remove_network(names.NETWORK)

    @staticmethod
    def _network() -> str:
        return os.environ.get(kind_cli.NETWORK) or names.NETWORK

    def _await_ready(self) -> None:
        last: list[str] = []

        def ready() -> bool:
            last[:] = self._of_cluster()
            return not last

        awaited = f"the cluster {names.CLUSTER} to be ready"
        if not polling.poll_until(ready, timeout=_STARTED, every=0.5, awaiting=awaited):
            events = diagnostics.told(self._api().events("kube-system")) if self._api().ready() else ""
            raise LabError(
                f"the cluster was not ready within {_STARTED:.0f} s: {last[0]}",
                hint="merlab down && merlab up",
                stderr=events or None,
                id="cluster.failed",
            )

    # -- removing ---------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Delete the cluster and its network if they are merlab's; succeed if there is nothing. Raises LabError."""
        for pid in kind_cli.at_work(names.CLUSTER):
            kind_cli.end(pid, names.CLUSTER)
        kind_cli.sweep()
        if self._keep:
            return
        if ownership.are_ours(ownership.nodes()):
            self._delete()
        if ownership.own_network():
            docker.remove_network(names.NETWORK)
        local_state.forget()

    def _delete(self) -> None:
        with polling.progress(f"kind deletes the cluster {names.CLUSTER}"):
            # Never a kubeconfig that the cluster names: whoever may write there could make root change a file here.
            told = {str(Path(each).absolute()) for each in (self._kubeconfig, local_state.kubeconfig()) if each}
            done = kind_cli.delete(names.CLUSTER, None)
            for kubeconfig in sorted(told):
                kind_cli.delete(names.CLUSTER, kubeconfig)
        left = ownership.nodes()
        if left:  # kind may fail because of a kubeconfig that it cannot read
            docker.remove([node.name for node in left])
        if ownership.nodes():
            raise LabError(
                f"the cluster {names.CLUSTER} could not be deleted",
                command=done.command,
                stderr=done.stderr,
                id="removal.failed",
            )

    # -- as a person would type it ----------------------------------------------------------------------------------

    def shell_commands(self) -> list[str]:
        """Return the commands that a person would type to create it."""
        create = pasteable(kind_cli.create_argv(names.CLUSTER, self._connection.best_known_settings().kind_image))
        network = self._network()
        own = [pasteable(docker.network_argv(network, ownership.NETWORK_LABEL))] if network == names.NETWORK else []
        return [
            *own,
            f"merlab manifests kind | {kind_cli.NETWORK}={network} {create}",
            *([pasteable(kind_cli.export_argv(names.CLUSTER, self._kubeconfig))] if self._kubeconfig else []),
        ]
