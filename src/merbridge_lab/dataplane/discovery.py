"""Discovery: who finds the endpoints that the dataplane serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.dataplane.endpoints import Endpoint


class Discovery(Protocol):
    """Finds the endpoints of one node. A lab, or an agent, has one; the dataplane is told what it found."""

    def endpoints(self) -> Sequence[Endpoint]:
        """Return the endpoints that are to be served now, each as it is at this moment."""
