"""Check that Merbridge's image is available: on the node, in Docker, or from its registry; else list alternatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab import polling
from merbridge_lab.adapters import docker, kind_cli
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import rollout, topology

if TYPE_CHECKING:
    from collections.abc import Sequence

#: How long to wait before a registry counts as unreachable, in seconds; a download that progresses has no limit.
_REACHED = 40.0


def load(node: str, refs: Sequence[str]) -> None:
    """Ensure that the node has the images. Raises LabError."""
    there = rollout.images_on(node)
    missing = [ref for ref in dict.fromkeys(refs) if rollout.full_name(ref) not in there]
    for ref in missing:
        fetch(ref)
    if missing:
        with polling.progress(f"kind loads {', '.join(missing)} into the node"):
            kind_cli.load(topology.CLUSTER, missing)


def require(refs: Sequence[str], node: str | None) -> None:
    """Check that the images are available: on the node, if there is one, or through Docker. Raises LabError."""
    there = rollout.images_on(node) if node else frozenset()
    for ref in dict.fromkeys(refs):
        if rollout.full_name(ref) not in there:
            fetch(ref)


def fetch(ref: str) -> None:
    """Ensure that Docker has the image. Raise LabError with the alternatives."""
    if docker.has_image(ref):
        return
    try:
        with polling.progress(f"can {ref} be pulled from {docker.registry(ref)}?"):
            docker.require_offered(ref, timeout=_REACHED)
        with polling.progress(f"docker pulls {ref} from {docker.registry(ref)}"):
            docker.pull(ref)
    except LabError as error:
        raise unavailable(ref, error) from error


def unavailable(ref: str, error: LabError) -> LabError:
    """Return the error for an image that is not available, with the alternatives."""
    return LabError(
        f"the image of Merbridge, {ref}, is not on this machine and cannot be pulled from {docker.registry(ref)}:"
        " load it (docker load), name another (--image merbridge=REF), have the whole proof (--lab embedded),"
        " or see what rules alone can show (--dataplane none)",
        hint="merlab up --lab kind --dataplane none",
        command=error.command,
        stderr=error.stderr,
        id="merbridge.no_image",
    )
