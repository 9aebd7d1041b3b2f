"""The kind lab's provider: merlab makes the cluster, so merlab owns it. With kind/ it alone knows Docker and kind."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters import docker, kind_cli, kubeconfig
from merbridge_lab.adapters.command import pasteable
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kind import local_state, names, ownership
from merbridge_lab.labs.kind.cluster import NodeComponent
from merbridge_lab.labs.kind.docker_images import DockerImages
from merbridge_lab.labs.kind.node import DockerNode
from merbridge_lab.labs.kubernetes.provider import ClusterState, OwnedCluster
from merbridge_lab.labs.kubernetes.settings import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from merbridge_lab.adapters.kubeconfig import Credentials
    from merbridge_lab.labs.kubernetes.provider import Connection
    from merbridge_lab.labs.kubernetes.settings import Settings
    from merbridge_lab.labs.options import Options
    from merbridge_lab.requirements import Requirement


class KindProvider:
    """The OwningProvider protocol with a kind cluster on this machine's Docker."""

    name = names.LAB
    context = names.CONTEXT

    def __init__(self, options: Options) -> None:
        self._options = options
        self.images = DockerImages()

    # -- looking ----------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Report whether anything of the lab exists. Raise LabError if Docker does not answer."""
        return ownership.exists()

    def state(self) -> ClusterState:
        """Return the cluster's nodes, whoever created it, and whether they are merlab's and run. Raises LabError."""
        found = ownership.nodes()
        nodes = tuple(DockerNode(one.name, one.image) for one in found)
        running = bool(found) and all(one.running for one in found)
        return ClusterState(nodes, usable=ownership.are_ours(found), running=running)

    def require_up(self) -> None:
        """Raise LabError if there is no cluster, a node does not run, or merlab did not make it."""
        found = ownership.nodes()
        if found and not ownership.are_ours(found):
            raise ownership.foreign()
        if not found:
            raise LabError("no lab is up", hint="merlab up", id="lab.not_up")
        if stopped := [node.name for node in found if not node.running]:
            raise LabError(f"the node {stopped[0]} of the kind lab does not run", hint="merlab up", id="node.stopped")

    def owned(self) -> OwnedCluster:
        """Return the cluster as merlab's own. Raise LabError if there is none, or merlab did not make it."""
        found = ownership.nodes()
        if not found:
            raise LabError("no lab is up", hint="merlab up", id="lab.not_up")
        if not ownership.are_ours(found):
            raise ownership.foreign()
        return OwnedCluster(f"each node has the mount {names.MARK}", tuple(DockerNode(one.name) for one in found))

    # -- entering ---------------------------------------------------------------------------------------------------

    def credentials(self) -> Credentials:
        """Return the credentials of the cluster's administrator. Raises LabError."""
        # The API is on this machine, whatever https_proxy says.
        return kubeconfig.of_mapping(kind_cli.kubeconfig_of(names.CLUSTER), direct=True)

    def offline_node(self) -> DockerNode:
        """Return the node as kind names it."""
        return DockerNode(names.NODE)

    def context_commands(self, is_cluster: Callable[[Mapping[str, Any]], bool]) -> list[str]:
        """Return the command that makes the cluster known to kubectl and istioctl; nothing if they know it."""
        if self._options.kubeconfig:
            return [f"export {pasteable(['KUBECONFIG=' + self._options.kubeconfig])}"]
        found = kind_cli.known(names.CLUSTER)
        with contextlib.suppress(LabError):
            if found is not None and (not ownership.nodes() or is_cluster(found)):
                return []
        return [pasteable(kind_cli.export_argv(names.CLUSTER))]

    # -- the cluster as a part of the lab -----------------------------------------------------------------------------

    def component(self, connection: Connection, changed: Callable[[], None]) -> NodeComponent:
        """Return the component that makes the cluster."""
        return NodeComponent(
            connection,
            changed,
            asked_image=self._options.kind_image,
            kubeconfig=self._options.kubeconfig,
            keep=self._options.keep_cluster,
        )

    def requirements(self, settings: Settings, *, same_kernel: bool) -> list[Requirement]:
        """Probe what this machine offers and lacks."""
        from merbridge_lab.requirements import kind_lab

        tools = kind_lab.kind(
            kubernetes=settings.kubernetes,
            misfit=settings.misfit(),
            istio=settings.istio_tag,
            tested=versions()["kind"]["tested"],
            same_kernel=same_kernel,
        )
        return [*tools, *ownership.requirement()]

    def stays(self, refs: Sequence[str]) -> list[str]:
        """Describe what `down` leaves: the cluster, if that was requested, and the images that Docker has."""
        there = [ref for ref in refs if self.images.has(ref)]
        kept = f"the cluster {names.CLUSTER} stays, as asked; merlab down removes it"
        pulled = f"its images stay with Docker; this removes them: docker image rm {' '.join(there)}"
        return [*([kept] if self._options.keep_cluster else []), *([pulled] if there else [])]

    def dump(self) -> dict[str, Callable[[], Any]]:
        """Return Docker, the node's container, and what kind printed when it failed."""
        parts: dict[str, Callable[[], Any]] = {
            "docker.json": lambda: asdict(docker.engine()),
            "nodes.json": lambda: [asdict(node) for node in ownership.nodes()],
        }
        if where := local_state.log():
            parts["kind-create.log"] = lambda: Path(where).read_text(encoding="utf-8", errors="replace")
        return parts
