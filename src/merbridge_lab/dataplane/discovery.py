"""The protocol of discovery: finding the endpoints that the dataplane serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.dataplane.endpoints import Endpoint


class Discovery(Protocol):
    """Finds the endpoints of one node. Its owner, such as a lab, passes what it finds to the dataplane."""

    def endpoints(self) -> Sequence[Endpoint]:
        """Return the endpoints to serve, each as it is at this moment."""
