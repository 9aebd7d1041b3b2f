"""Control pods: a client and a server as long as merlab runs, the client out of the dataplane's reach.

Upstream attaches to the node's root cgroup, so no pod of the node is out of its reach. A process of this machine that
enters only the network and the files of a pod is.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab import polling, signals
from merbridge_lab.adapters import kubernetes_api
from merbridge_lab.adapters.command import run
from merbridge_lab.errors import LabError
from merbridge_lab.labs import request_batch
from merbridge_lab.labs.kubernetes import diagnostics, manifests, pods, topology
from merbridge_lab.labs.kubernetes.dataplanes.merbridge import node_view as places
from merbridge_lab.labs.kubernetes.topology import WorkloadSpec
from merbridge_lab.labs.kubernetes.workload import KubernetesWorkload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from merbridge_lab.labs.kubernetes.connection import Access
    from merbridge_lab.labs.kubernetes.dataplanes.merbridge.node_view import NodeView
    from merbridge_lab.observation import Exchange

CLIENT = WorkloadSpec("sleep-twin", "app=sleep-twin", "sleep")
SERVER = WorkloadSpec("helloworld-twin", "app=helloworld-twin", "helloworld")
URL = "http://helloworld-twin:5000/hello"
_READY = 60.0
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


class Pair:
    """The control pair, created when it is first needed and removed by `close`."""

    def __init__(self, access: Access, place: Callable[[], NodeView]) -> None:
        self._access, self._place = access, place
        self._made: tuple[OutsideWorkload, KubernetesWorkload] | None = None

    def get(self) -> tuple[OutsideWorkload, KubernetesWorkload]:
        """Return client and server. Raises LabError."""
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> tuple[OutsideWorkload, KubernetesWorkload]:
        if not places.is_outside(self._place()):
            raise LabError(
                "merlab itself runs in the node's cgroup, so no request of its own is out of the dataplane's reach",
                hint="run merlab on the machine itself, not in the node",
                id="requirement.missing",
            )
        self.close()
        api, node_exec = self._access.api(), self._access.node_exec()
        for document in manifests.objects("twin", self._access.settings()):
            api.apply(document)
        client = OutsideWorkload(api, CLIENT, node_exec)
        client.place = self._place()
        server = KubernetesWorkload(api, SERVER, node_exec)
        self._made = client, server
        self._await_ready()
        return client, server

    def _await_ready(self) -> None:
        api = self._access.api()
        found: list[pods.Pod] = []

        def ready() -> bool:
            found[:] = [pod for spec in (CLIENT, SERVER) for pod in pods.active_pods(api, spec)]
            return len(found) == 2 and all(pod.ready for pod in found)  # noqa: PLR2004 - a pair

        if not polling.poll_until(ready, timeout=_READY, every=0.3, awaiting="the control pods to be ready"):
            told = api.all("Pod", topology.NAMESPACE, f"app in ({CLIENT.name},{SERVER.name})")
            seen = diagnostics.diagnose(told, _READY, self._access.provider.images, now=True)
            raise LabError(
                f"the control pods were not ready within {_READY:.0f} s{f': {seen.what}' if seen else ''}",
                hint="merlab status",
                stderr=diagnostics.told(api.events()) or None,
                id="pod.not_ready",
            )

    def close(self) -> None:
        """Remove them, also those of a killed merlab, and what was saved of their rules. Raises LabError."""
        made, self._made = self._made, None
        api = self._access.api()
        with signals.shielded():
            for spec in (CLIENT, SERVER):
                api.delete(kubernetes_api.path("Pod", spec.name), grace=0)
            api.delete(kubernetes_api.path("Service", SERVER.name))
            for workload in made or ():
                with contextlib.suppress(LabError):
                    workload.rules.restore()  # of a pod that is gone: its saved rules are deleted

    @property
    def made(self) -> bool:
        """Report whether there are any now that this merlab created."""
        return self._made is not None
