"""What the dataplanes have alike whose part in the kernel is read from this machine: the node, and what they leave."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes.dataplanes import node_trace, node_view

if TYPE_CHECKING:
    from merbridge_lab.labs.kubernetes.connection import Access
    from merbridge_lab.labs.kubernetes.dataplanes.control_pods import Pair
    from merbridge_lab.labs.kubernetes.dataplanes.node_view import NodeView


class NodeComponent:
    """The component of such a dataplane."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._place: NodeView | None = None

    def place(self) -> NodeView:
        """Return the node as this machine's kernel sees it. Raises LabError."""
        if self._place is None or self._place.node != self._access.node():
            self._place = node_view.find(self._access.node())
        return self._place

    def forget(self) -> None:
        """Look the node up again the next time: it was created or started meanwhile."""
        self._place = None

    def require_gone(self) -> None:
        """Check that what it loaded is out of the kernel. Raises LabError."""
        raise NotImplementedError


class NodeStrategy:
    """Such a dataplane's part of the ClusterDataplane protocol that concerns what it leaves."""

    component: NodeComponent
    _pair: Pair

    def forget(self) -> None:
        """Look the node up again the next time."""
        self.component.forget()

    def close(self) -> None:
        """Remove the control pods, if this merlab created some."""
        if self._pair.made:
            self._pair.close()

    def sweep(self) -> None:
        """Remove control pods, also those of a killed merlab, and the trace buffers that one left. Raises LabError."""
        self._pair.close()
        node_trace.sweep(self.component.place())

    def release(self) -> None:
        """Remove the same; a node that cannot be seen any more keeps no buffers. Raises LabError."""
        self._pair.close()
        with contextlib.suppress(LabError):
            node_trace.sweep(self.component.place())

    def require_gone(self) -> None:
        """Check that what it loaded is out of the kernel. Raises LabError."""
        self.component.require_gone()
