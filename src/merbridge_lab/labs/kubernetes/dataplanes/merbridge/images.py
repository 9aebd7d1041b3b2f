"""Check that Merbridge's image is available: on the node, on this machine, or from its registry; list alternatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab import hints
from merbridge_lab.adapters.image_reference import full_name, registry
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import rollout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.labs.kubernetes.provider import Node, NodeImages


def load(node: Node, refs: Sequence[str], images: NodeImages) -> None:
    """Ensure that the node has the images. Raises LabError."""
    there = rollout.images_on(node)
    missing = [ref for ref in dict.fromkeys(refs) if full_name(ref) not in there]
    for ref in missing:
        fetch(ref, images)
    if missing:
        images.load(missing)


def require(refs: Sequence[str], node: Node | None, images: NodeImages) -> None:
    """Check that the images are available: on the node, if there is one, or from this machine. Raises LabError."""
    there = rollout.images_on(node) if node else frozenset()
    for ref in dict.fromkeys(refs):
        if full_name(ref) not in there:
            fetch(ref, images)


def fetch(ref: str, images: NodeImages) -> None:
    """Ensure that this machine has the image. Raise LabError with the alternatives."""
    try:
        images.fetch(ref)
    except LabError as error:
        raise unavailable(ref, error, images) from error


def unavailable(ref: str, error: LabError, images: NodeImages) -> LabError:
    """Return the error for an image that is not available, with the alternatives."""
    return LabError(
        f"the image of Merbridge, {ref}, is not on this machine and cannot be pulled from {registry(ref)}:"
        f" load it ({images.import_command()}), name another (--image merbridge=REF), have the whole proof"
        f" ({hints.WITHOUT_CLUSTER}), or see what rules alone can show (--dataplane none)",
        hint="merlab up --dataplane none",
        command=error.command,
        stderr=error.stderr,
        id="merbridge.no_image",
    )
