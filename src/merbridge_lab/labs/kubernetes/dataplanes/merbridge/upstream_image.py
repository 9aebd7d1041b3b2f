"""Upstream's image, which may not be available any more: what to do then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab import hints
from merbridge_lab.adapters.image_reference import registry
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes.dataplanes.images import ImageSource

if TYPE_CHECKING:
    from merbridge_lab.labs.kubernetes.provider import NodeImages


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


SOURCE = ImageSource(unavailable)
