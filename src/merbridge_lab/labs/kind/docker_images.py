"""Docker's images, and the way from there into the nodes of a kind cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab import polling
from merbridge_lab.adapters import docker, kind_cli
from merbridge_lab.adapters.command import pasteable
from merbridge_lab.adapters.image_reference import registry
from merbridge_lab.labs.kind import names

if TYPE_CHECKING:
    from collections.abc import Sequence

#: How long to wait before a registry counts as unreachable, in seconds; a download that progresses has no limit.
_REACHED = 40.0


class DockerImages:
    """The NodeImages protocol with Docker and kind."""

    def has(self, ref: str) -> bool:
        """Report whether Docker has an image. Raise LabError if it does not answer."""
        return docker.has_image(ref)

    def identity(self, ref: str) -> str | None:
        """Return the digest of an image's configuration; None if Docker does not have the image. Raises LabError."""
        return docker.image_id(ref)

    def fetch(self, ref: str) -> None:
        """Pull an image that Docker does not have. Raises LabError."""
        if docker.has_image(ref):
            return
        with polling.progress(f"can {ref} be pulled from {registry(ref)}?"):
            docker.require_offered(ref, timeout=_REACHED)
        with polling.progress(f"docker pulls {ref} from {registry(ref)}"):
            docker.pull(ref)

    def load(self, refs: Sequence[str]) -> None:
        """Copy images from Docker into the nodes. Raises LabError."""
        with polling.progress(f"kind loads {', '.join(refs)} into the node"):
            kind_cli.load(names.CLUSTER, refs)

    def pull_command(self, ref: str) -> str:
        """Return the command that a person types to pull an image."""
        return f"docker pull {ref}"

    def load_command(self, refs: Sequence[str]) -> str:
        """Return the command that a person types to copy images into the nodes."""
        return pasteable(kind_cli.load_argv(names.CLUSTER, refs))

    def import_command(self) -> str:
        """Return the name of the command that reads images from a file."""
        return "docker load"
