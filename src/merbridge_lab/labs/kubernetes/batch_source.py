"""What a lab on a cluster lends to one batch of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters import conntrack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from merbridge_lab.labs.kubernetes.workload import KubernetesWorkload
    from merbridge_lab.labs.request_batch import DataplaneEvidence, Log, TcpBytes
    from merbridge_lab.observation import Batch, Exchange


class ClusterBatch:
    """The requests of `client` to `url`, which `servers` answer; logs are read from the moment it is created."""

    def __init__(
        self, client: KubernetesWorkload, servers: Sequence[KubernetesWorkload], url: str, dataplane: DataplaneEvidence
    ) -> None:
        self.client, self.dataplane = client, dataplane
        self._servers, self._url = servers, url
        self.client_log: Log = client.log()
        self.server_logs: Mapping[str, Log] = {one.name: one.log() for one in servers}

    def ask(self) -> Exchange:
        """Send one request as the client's app."""
        return self.client.ask(self._url)

    def changed_sources(self) -> Mapping[str, frozenset[str]]:
        """Return the source addresses that conntrack changed in the pods and on their nodes."""
        return conntrack.merge(one.changed_sources() for one in (self.client, *self._servers))

    def tcp_bytes(self, batch: Batch) -> TcpBytes | None:  # noqa: ARG002 - the protocol's
        """Return None: this lab does not read it."""
        return None
