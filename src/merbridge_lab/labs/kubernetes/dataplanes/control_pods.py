"""Control pods: a client and a server as long as merlab runs, the client out of the dataplane's reach.

How it is out of reach is the dataplane's own matter: it says which workload sends the client's requests.
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
_READY = 60.0


class Pair:
    """The control pair, created when it is first needed and removed by `close`.

    `make_client` returns the workload of the client's pod, or raises LabError if it cannot be out of reach.
    """

    def __init__(self, access: Access, make_client: Callable[[], KubernetesWorkload]) -> None:
        self._access, self._make_client = access, make_client
        self._made: tuple[KubernetesWorkload, KubernetesWorkload] | None = None

    def get(self) -> tuple[KubernetesWorkload, KubernetesWorkload]:
        """Return client and server. Raises LabError."""
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> tuple[KubernetesWorkload, KubernetesWorkload]:
        client = self._make_client()
        self.close()
        api, node_exec = self._access.api(), self._access.node_exec()
        for document in manifests.objects("twin", self._access.settings()):
            api.apply(document)
        self._made = client, KubernetesWorkload(api, SERVER, node_exec)
        self._await_ready()
        return self._made

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
