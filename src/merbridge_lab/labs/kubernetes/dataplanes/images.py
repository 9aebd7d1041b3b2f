"""Check that a dataplane's image is available: on the node, on this machine, or from its registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters.image_reference import full_name
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import rollout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from merbridge_lab.labs.kubernetes.provider import Node, NodeImages


class ImageSource:
    """Where a dataplane's images come from; `unavailable` returns the error for one that cannot be had."""

    def __init__(self, unavailable: Callable[[str, LabError, NodeImages], LabError]) -> None:
        self._unavailable = unavailable

    def load(self, node: Node, refs: Sequence[str], images: NodeImages) -> None:
        """Ensure that the node has the images. Raises LabError."""
        there = rollout.images_on(node)
        missing = [ref for ref in dict.fromkeys(refs) if full_name(ref) not in there]
        for ref in missing:
            self._fetch(ref, images)
        if missing:
            images.load(missing)

    def require(self, refs: Sequence[str], node: Node | None, images: NodeImages) -> None:
        """Check that the images are available: on the node, if there is one, or from this machine. Raises LabError."""
        there = rollout.images_on(node) if node else frozenset()
        for ref in dict.fromkeys(refs):
            if full_name(ref) not in there:
                self._fetch(ref, images)

    def _fetch(self, ref: str, images: NodeImages) -> None:
        try:
            images.fetch(ref)
        except LabError as error:
            raise self._unavailable(ref, error, images) from error
