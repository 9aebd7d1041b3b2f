"""Pods as long as merlab runs: a control pair out of the dataplane's reach, and a server whose rules may be flushed.

How the pair's client is out of reach is the dataplane's own matter: it says which workload sends the client's requests.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab import polling, signals
from merbridge_lab.adapters import kubernetes_api
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import diagnostics, manifests, pods, topology
from merbridge_lab.labs.kubernetes.topology import WorkloadSpec
from merbridge_lab.labs.kubernetes.workload import KubernetesWorkload

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.labs.kubernetes.connection import Access

CLIENT = WorkloadSpec("sleep-twin", "app=sleep-twin", "sleep")
SERVER = WorkloadSpec("helloworld-twin", "app=helloworld-twin", "helloworld")
URL = "http://helloworld-twin:5000/hello"
#: The dataplane serves it, as it does any pod of the mesh.
DISPOSABLE = WorkloadSpec("helloworld-disposable", "app=helloworld-disposable", "helloworld")
DISPOSABLE_URL = "http://helloworld-disposable:5000/hello"
_READY = 60.0


class Pair:
    """The control pair, created when it is first needed and removed by `close`.

    `make_client` returns the workload of the client's pod, or raises LabError if it cannot be out of reach. With
    `disposable`, the disposable server is created at the same time, so that one wait is enough for all of them.
    """

    def __init__(
        self, access: Access, make_client: Callable[[], KubernetesWorkload], *, disposable: bool = False
    ) -> None:
        self._access, self._make_client = access, make_client
        self._specs = (CLIENT, SERVER, *((DISPOSABLE,) if disposable else ()))
        self._made: tuple[KubernetesWorkload, ...] | None = None

    def get(self) -> tuple[KubernetesWorkload, KubernetesWorkload]:
        """Return client and server. Raises LabError."""
        client, server, *_ = self._get()
        return client, server

    def disposable(self) -> KubernetesWorkload:
        """Return the disposable server. Raises LabError."""
        *_, server = self._get()
        return server

    def _get(self) -> tuple[KubernetesWorkload, ...]:
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> tuple[KubernetesWorkload, ...]:
        client = self._make_client()
        self.close()
        api, node_exec = self._access.api(), self._access.node_exec()
        wanted = ("twin", *(("disposable",) if DISPOSABLE in self._specs else ()))
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            # From now on there may be some.
            self._made = made = (client, *(KubernetesWorkload(api, spec, node_exec) for spec in self._specs[1:]))
            for name in wanted:
                for document in manifests.objects(name, self._access.settings()):
                    api.apply(document)
            self._await_ready()
            undo.pop_all()
        return made

    def _await_ready(self) -> None:
        api = self._access.api()
        found: list[pods.Pod] = []

        def ready() -> bool:
            found[:] = [pod for spec in self._specs for pod in pods.active_pods(api, spec)]
            return len(found) == len(self._specs) and all(pod.ready for pod in found)

        if not polling.poll_until(ready, timeout=_READY, every=0.3, awaiting="the control pods to be ready"):
            told = api.all("Pod", topology.NAMESPACE, f"app in ({','.join(spec.name for spec in self._specs)})")
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
            for spec in self._specs:
                api.delete(kubernetes_api.path("Pod", spec.name), grace=0)
            for spec in self._specs[1:]:
                api.delete(kubernetes_api.path("Service", spec.name))
            for workload in made or ():
                with contextlib.suppress(LabError):
                    workload.rules.restore()  # of a pod that is gone: its saved rules are deleted

    @property
    def made(self) -> bool:
        """Report whether there are any now that this merlab created."""
        return self._made is not None
