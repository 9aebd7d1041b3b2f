"""What a lab on a cluster needs of whoever brings the cluster: its nodes, credentials and images, and what it owns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from merbridge_lab.adapters.command import Result
    from merbridge_lab.adapters.kubeconfig import Credentials
    from merbridge_lab.adapters.kubernetes_api import Api
    from merbridge_lab.lab import Component
    from merbridge_lab.labs.kubernetes.settings import Settings
    from merbridge_lab.requirements import Requirement


class Node(Protocol):
    """A machine that the cluster's pods run on."""

    @property
    def name(self) -> str:
        """Its name in the cluster."""

    @property
    def image(self) -> str:
        """The image that it was made of; "" if it is none."""

    def execute(
        self, argv: Sequence[str], *, stdin: str | None = None, timeout: float = 30.0, ok: Sequence[int] = (0,)
    ) -> Result:
        """Run a command as root on the node. Raise LabError if it ends with a status that is not in `ok`."""

    def argv(self, argv: Sequence[str], *, terminal: bool = True) -> list[str]:
        """Return the command with which this process runs `argv` there, with our input, and our terminal if it has."""

    def shell_command(self, argv: Sequence[str]) -> str:
        """Return the command that a person types to run `argv` there."""

    def init_pid(self) -> int:
        """Return the PID of the node's init as this machine's kernel has it.

        Raise LabError with the reason if the node has another kernel, PermissionError if only root sees it.
        """


class NodeImages(Protocol):
    """The images that this machine has, and the way from here into the cluster's nodes."""

    def has(self, ref: str) -> bool:
        """Report whether this machine has an image. Raise LabError if that cannot be determined."""

    def identity(self, ref: str) -> str | None:
        """Return the digest of an image's configuration; None if this machine does not have it. Raises LabError."""

    def fetch(self, ref: str) -> None:
        """Get an image onto this machine, if it is not there. Raises LabError."""

    def load(self, refs: Sequence[str]) -> None:
        """Copy images that this machine has into the nodes. Raises LabError."""

    def pull_command(self, ref: str) -> str:
        """Return the command that a person types to get an image onto this machine."""

    def load_command(self, refs: Sequence[str]) -> str:
        """Return the command that a person types to copy images into the nodes."""

    def import_command(self) -> str:
        """Return the name of the command that reads images from a file onto this machine."""


@dataclass(frozen=True)
class ClusterState:
    """What exists of the cluster: its nodes, whether the lab may use it, and whether all of its nodes run.

    The lab may not use a cluster of the same name that it was not made for.
    """

    nodes: tuple[Node, ...] = ()
    usable: bool = False
    running: bool = False

    @property
    def up(self) -> bool:
        """Report whether the lab's cluster exists and runs."""
        return self.usable and self.running


@final
@dataclass(frozen=True)
class OwnedCluster:
    """A cluster that merlab made, which is therefore merlab's to change as a whole, and to empty.

    What changes or removes something for all users of a cluster takes a value of this type (see cluster_wide). Only
    an OwningProvider returns one, after it has seen that the cluster is merlab's: `evidence` tells by what.
    """

    evidence: str
    nodes: tuple[Node, ...]


class Connection(Protocol):
    """What a provider may ask of the lab about its cluster."""

    def api(self) -> Api:
        """Return the cluster's API. Raises LabError."""

    def settings(self) -> Settings:
        """Return the desired settings. Raises LabError."""

    def best_known_settings(self) -> Settings:
        """Return the same, or the best guess if the cluster cannot be read now."""


class ClusterProvider(Protocol):
    """Who brings the cluster: makes it, or lends one that exists."""

    #: The lab's name on the command line, and in the JSON.
    name: str
    #: The cluster's context for kubectl.
    context: str

    @property
    def images(self) -> NodeImages:
        """The images of this machine."""

    def exists(self) -> bool:
        """Report whether anything of it exists. Raise LabError if that cannot be determined."""

    def state(self) -> ClusterState:
        """Return what exists of the cluster now. Raise LabError if that cannot be determined."""

    def require_up(self) -> None:
        """Raise LabError if there is no cluster, a node does not run, or the cluster is not the lab's."""

    def credentials(self) -> Credentials:
        """Return the credentials of the cluster's administrator. Raises LabError."""

    def component(self, connection: Connection, changed: Callable[[], None]) -> Component:
        """Return the component of the lab that is the cluster; it calls `changed` after it created or started it."""

    def offline_node(self) -> Node:
        """Return the node that commands are shown for if no cluster exists: only what it would type is used."""

    def context_commands(self, is_cluster: Callable[[Mapping[str, Any]], bool]) -> list[str]:
        """Return the commands that make the context known to kubectl; none if it knows it.

        `is_cluster` reports whether a kubeconfig's entry leads to the cluster.
        """

    def requirements(self, settings: Settings, *, same_kernel: bool) -> list[Requirement]:
        """Probe what this machine offers and lacks; with `same_kernel`, the nodes must be on this machine's kernel."""

    def stays(self, refs: Sequence[str]) -> list[str]:
        """Describe, one sentence each, what `down` leaves of the cluster, and of the images `refs`."""

    def dump(self) -> dict[str, Callable[[], Any]]:
        """Return its parts of a sysdump, each with the function that returns its content; none contains a key."""


class OwningProvider(ClusterProvider, Protocol):
    """A provider that makes its clusters, and so may hand out one as merlab's own."""

    def owned(self) -> OwnedCluster:
        """Return the cluster as merlab's own. Raise LabError if there is none, or merlab did not make it."""
