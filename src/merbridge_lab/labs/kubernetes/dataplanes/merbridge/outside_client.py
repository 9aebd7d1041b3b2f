"""A pod that is asked from outside the node's cgroup.

Upstream attaches to the node's root cgroup, so no pod of the node is out of its reach. A process of this machine that
enters only the network and the files of a pod is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters.command import run
from merbridge_lab.errors import LabError
from merbridge_lab.labs import request_batch
from merbridge_lab.labs.kubernetes.dataplanes import control_pods, node_view
from merbridge_lab.labs.kubernetes.workload import KubernetesWorkload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from merbridge_lab.labs.kubernetes.connection import Access
    from merbridge_lab.labs.kubernetes.dataplanes.node_view import NodeView
    from merbridge_lab.observation import Exchange

#: The namespaces that are entered, by the names of nsenter and of /proc. The cgroup is not entered, on purpose.
_ENTERED = {"net": "net", "mount": "mnt", "uts": "uts"}


class OutsideWorkload(KubernetesWorkload):
    """A pod whose network is used from outside the node's cgroup; its sidecar is in the node as usual."""

    place: NodeView

    def _argv(self, argv: Sequence[str]) -> list[str]:
        process = self.place.process(self.found(refresh=False)[1].pid)
        # The files are the pod's, too: its curl, and its name resolution. So is the host's name: curl looks it up (for
        # LDAP), and the machine's name is not in the pod's /etc/hosts.
        namespaces = [f"--{kind}={process}/ns/{name}" for kind, name in _ENTERED.items()]
        return ["nsenter", *namespaces, "--", *argv]

    def ask(self, url: str) -> Exchange:
        """Send one request, from outside."""
        nonce = request_batch.new_nonce()
        done = run(self._argv(request_batch.curl(nonce, url)), timeout=request_batch.REQUEST + 5, ok=range(256))
        return request_batch.read(nonce, url, done.status, done.stdout, done.stderr)

    def app_argv(self, argv: Sequence[str], *, terminal: bool | None = None) -> list[str]:  # noqa: ARG002 - no terminal is made
        """Return the argv that runs `argv` in the pod's network and files, from outside the node's cgroup."""
        return self._argv(argv)


def client(access: Access, place: Callable[[], NodeView]) -> OutsideWorkload:
    """Return the workload of the control client. Raise LabError if this process is in the node's cgroup itself."""
    if not node_view.is_outside(place()):
        raise LabError(
            "merlab itself runs in the node's cgroup, so no request of its own is out of the dataplane's reach",
            hint="run merlab on the machine itself, not in the node",
            id="requirement.missing",
        )
    made = OutsideWorkload(access.api(), control_pods.CLIENT, access.node_exec())
    made.place = place()
    return made
