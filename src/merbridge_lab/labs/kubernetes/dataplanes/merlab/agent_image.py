"""The agent's image, which everybody builds: what to do where it is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters.image_reference import full_name
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import rollout
from merbridge_lab.labs.kubernetes.dataplanes.images import ImageSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.labs.kubernetes.provider import Node, NodeImages

#: Builds it, in a checkout of merlab.
BUILD = "make agent-image"


def unavailable(ref: str, error: LabError, images: NodeImages) -> LabError:
    """Return the error for an image that is not available, with the alternatives."""
    return LabError(
        f"the image of merlab's agent, {ref}, is not on this machine: build it in a checkout of merlab ({BUILD}),"
        f" load it ({images.import_command()}), or name another (--image merlab=REF)",
        hint=BUILD,
        command=error.command,
        stderr=error.stderr,
        id="agent.no_image",
    )


class AgentImage(ImageSource):
    """The agent's image: it is on this machine, or on the node, or nowhere; no registry has it."""

    def __init__(self) -> None:
        super().__init__(unavailable)

    def load(self, node: Node, refs: Sequence[str], images: NodeImages) -> None:
        """Copy the image into the node, also if another one of its name is there: it may have been built since."""
        here = {ref: identity for ref in refs if (identity := images.identity(ref)) is not None}
        there = rollout.images_by_name(node)
        changed = [ref for ref, identity in here.items() if there.get(full_name(ref), "") != there.get(identity)]
        if changed:
            images.load(changed)
        super().load(node, [ref for ref in refs if ref not in here], images)

    def _fetch(self, ref: str, images: NodeImages) -> None:
        if not images.has(ref):
            raise unavailable(ref, LabError("", id="agent.no_image"), images)


SOURCE = AgentImage()
