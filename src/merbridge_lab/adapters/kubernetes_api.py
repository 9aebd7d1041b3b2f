"""The API of a Kubernetes cluster, through the kubernetes client library.

Objects are the plain dictionaries of the API. Reads are retried while the API does not answer (an API server that is
restarted, or delayed, is back within seconds), and report this meanwhile.
"""

from __future__ import annotations

import functools
import json
import os
import re
import ssl
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from merbridge_lab import polling, signals
from merbridge_lab.adapters.certificate_period import period
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.memfd import MemFile
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from merbridge_lab.adapters.kubeconfig import Credentials


T = TypeVar("T")
Object = dict[str, Any]

#: Timeouts for a connection, and for an answer, in seconds.
TIMEOUT = (3.0, 8.0)
#: How long requests to a silent API are retried, in seconds.
_PATIENCE = 40.0
_NOT_FOUND, _UNAUTHORIZED, _FORBIDDEN, _TOO_MANY, _SERVER_ERROR = 404, 401, 403, 429, 500
_MANAGER = "merlab"

#: TLS errors about certificates, from OpenSSL here or as an alert of the other end (RFC 8446, 6.2).
_OF_CERTIFICATES = re.compile(r"certificate|unknown[ _]ca", re.IGNORECASE)

#: The messages of kubelet, containerd and runc about a container that ended, or was recreated, before a command ran in
#: it.
ENDED = re.compile(r"container not found|CONTAINER_EXITED|no running task|stopped container|has stopped|not running")
_NAMED = {
    "Namespace": "/api/v1/namespaces/{name}",
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts/{name}",
    "Service": "/api/v1/namespaces/{namespace}/services/{name}",
    "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps/{name}",
    "Pod": "/api/v1/namespaces/{namespace}/pods/{name}",
    "Node": "/api/v1/nodes/{name}",
    "DaemonSet": "/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles/{name}",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{name}",
    "Deployment": "/apis/apps/v1/namespaces/{namespace}/deployments/{name}",
    "MutatingWebhookConfiguration": "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}",
    "DestinationRule": "/apis/networking.istio.io/v1/namespaces/{namespace}/destinationrules/{name}",
    "Telemetry": "/apis/telemetry.istio.io/v1/namespaces/{namespace}/telemetries/{name}",
    "PeerAuthentication": "/apis/security.istio.io/v1/namespaces/{namespace}/peerauthentications/{name}",
}

#: The kinds of objects that are applied and found.
KINDS = frozenset(_NAMED)


class ApiUnavailableError(LabError):
    """The API does not answer, or answers that it is not available now."""

    default_id = "cluster.unreachable"


class NotFoundError(LabError):
    """The object does not exist."""

    default_id = "pod.restarted"


def path(kind: str, name: str = "", namespace: str = "default") -> str:
    """Return the path of an object, or without `name` that of all objects of its kind in the namespace."""
    return _NAMED[kind].format(namespace=namespace, name=name).rstrip("/")


def without_proxy(host: str) -> str:
    """Return a no_proxy value with which `host` is reached directly, and everything that was in it before."""
    told = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return ",".join(dict.fromkeys([*filter(None, told.split(",")), host]))


class Api:
    """One cluster, entered with the credentials of one context."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self.server, self.context = credentials.server, credentials.context
        if credentials.direct:
            # Websockets, and the commands that we run, read the environment.
            os.environ["no_proxy"] = without_proxy(str(urlsplit(self.server).hostname))

    @functools.cached_property
    def _configuration(self) -> Any:  # noqa: ANN401 - the library has no types
        return self._credentials.configuration()

    @functools.cached_property
    def _client(self) -> Any:  # noqa: ANN401 - the library has no types
        from kubernetes.client import ApiClient
        from kubernetes.dynamic import DynamicClient

        # Without a discoverer the client sends no requests beforehand and writes no cache.
        return DynamicClient(ApiClient(self._configuration), discoverer=lambda *_: None)

    def websocket_options(self) -> dict[str, Any]:
        """Return what a websocket to the API needs: how to check its certificate, and how to prove who we are."""
        made = self._configuration
        files = {"ca_certs": made.ssl_ca_cert, "certfile": made.cert_file, "keyfile": made.key_file}
        options: dict[str, Any] = {name: path for name, path in files.items() if path}
        if not made.verify_ssl:
            options |= {"cert_reqs": ssl.CERT_NONE, "check_hostname": False}
        if name := self._credentials.cluster.get("tls-server-name"):
            options["server_hostname"] = name
        told = made.auth_settings().get("BearerToken")
        return {"sslopt": options, "header": {"Authorization": told["value"]} if told else {}}

    def is_at(self, cluster: Mapping[str, Any]) -> bool:
        """Report whether a kubeconfig's entry leads to this cluster: a recreated one has other keys and a new port."""
        ours = self._credentials.cluster
        return all(ours.get(key) == cluster.get(key) for key in ("server", "certificate-authority-data"))

    @functools.cached_property
    def kubeconfig_file(self) -> str:
        """The path where other programs find the kubeconfig while this process runs."""
        import yaml

        self._file = MemFile(yaml.safe_dump(self._credentials.kubeconfig()).encode())
        return self._file.path

    # -- requests ---------------------------------------------------------------------------------------------------

    def _once(
        self, method: str, where: str, query: Mapping[str, object], body: object = None, content: str = ""
    ) -> bytes:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        signals.checkpoint()
        options: dict[str, Any] = {"query_params": list(query.items()), "_request_timeout": TIMEOUT}
        if content:
            options["content_type"] = content
        try:
            response = self._client.request(method, where, body=body, serialize=False, **options)
        except ApiException as error:
            raise self.refused(error.status, error.body or str(error), method, where) from error
        except (HTTPError, OSError) as error:
            raise self.unavailable(error) from error
        return bytes(response.data)

    def refused(self, status: int | None, said: str, method: str, where: str) -> LabError:
        """Return the error for a failed request to the API; `said` is the body of the answer."""
        try:
            said = json.loads(said)["message"]
        except (ValueError, KeyError, TypeError):
            said = said[:500]
        if status == _NOT_FOUND:
            return NotFoundError(f"there is no {where} in the cluster", stderr=said)
        if ENDED.search(said):
            return NotFoundError(f"the container of {where} no longer exists", hint="merlab status", stderr=said)
        if status in (_UNAUTHORIZED, _FORBIDDEN):
            # An API gives its administrator this answer only while it starts and has not read its own rules yet.
            return self._expired() or ApiUnavailableError(
                f"the cluster does not allow to {method} {where}",
                hint="merlab down && merlab up",
                stderr=said,
            )
        if status == _TOO_MANY or (status or 0) >= _SERVER_ERROR:
            return ApiUnavailableError(f"the API at {self.server} cannot answer now", hint="merlab doctor", stderr=said)
        return LabError(f"the cluster refuses to {method} {where}", stderr=said, id="cluster.unreachable")

    def unavailable(self, error: Exception) -> LabError:
        """Return the error for an API that did not answer, or broke off; name the certificates if they are why."""
        said = str(error)
        # An end of TLS in the middle, a broken record: these are not about certificates.
        if isinstance(error, ssl.SSLCertVerificationError) or _OF_CERTIFICATES.search(said):
            return self._expired() or LabError(
                f"the certificates of the cluster at {self.server} are no longer valid",
                hint="merlab down && merlab up",
                stderr=said,
                id="cluster.unreachable",
            )
        return ApiUnavailableError(
            f"the API of the cluster at {self.server} does not answer", hint="merlab doctor", stderr=said
        )

    def _expired(self) -> LabError | None:
        from cryptography import x509

        if (pem := self._credentials.certificate) is None:
            return None
        _, ends = period(x509.load_pem_x509_certificate(pem))
        if ends > datetime.now(timezone.utc):
            return None
        return LabError(
            f"the certificates of the cluster expired on {ends:%Y-%m-%d}",
            hint="merlab down && merlab up",
            id="cluster.unreachable",
        )

    def _patiently(self, once: Callable[[], T], *, patience: float = _PATIENCE) -> T:
        """Retry while the API is silent, for at most `patience` seconds."""
        last: list[LabError] = []
        given: list[T] = []

        def attempt() -> bool:
            try:
                given.append(once())
            except ApiUnavailableError as error:
                last.append(error)
                return False
            return True

        if not polling.poll_until(attempt, timeout=patience, awaiting="the cluster's API to answer"):
            raise last[-1]
        return given[0]

    # -- objects ----------------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Report whether the API answers, and reports readiness."""
        try:
            return self._once("get", "/readyz", {}) == b"ok"
        except ApiUnavailableError:
            return False

    def get(self, where: str, **query: object) -> Object:
        """Return what is at a path. Raises NotFoundError, ApiUnavailableError, LabError."""
        return dict(json.loads(self._patiently(lambda: self._once("get", where, query))))

    def find(self, where: str) -> Object | None:
        """Return what is at a path, or None."""
        try:
            return self.get(where)
        except NotFoundError:
            return None

    def all(self, kind: str, namespace: str = "default", selector: str = "") -> list[Object]:
        """Return all objects of a kind in a namespace, or those with the labels of `selector`."""
        query = {"labelSelector": selector} if selector else {}
        return list(self.get(path(kind, namespace=namespace), **query)["items"])

    def events(self, namespace: str = "default") -> list[Object]:
        """Return the events of a namespace, the latest last."""
        found = self.get(f"/api/v1/namespaces/{namespace}/events")["items"]
        return sorted(found, key=lambda one: one.get("lastTimestamp") or one["metadata"]["creationTimestamp"])

    @change("apply an object")
    def apply(self, document: Object) -> None:
        """Apply an object; fields that others set stay (server-side apply)."""
        meta = document["metadata"]
        where = path(document["kind"], meta["name"], meta.get("namespace", "default"))
        content = "application/apply-patch+yaml"
        query = {"fieldManager": _MANAGER, "force": "true"}
        self._patiently(lambda: self._once("patch", where, query, document, content))

    @change("delete an object")
    def delete(self, where: str, *, grace: int | None = None) -> None:
        """Delete what is at a path; succeed if nothing is there."""
        query = {} if grace is None else {"gracePeriodSeconds": grace}
        try:
            self._patiently(lambda: self._once("delete", where, query))
        except NotFoundError:
            return

    # -- pods -------------------------------------------------------------------------------------------------------

    def log(
        self,
        namespace: str,
        pod: str,
        container: str,
        *,
        tail: int | None = None,
        since: int | None = None,
        previous: bool = False,
    ) -> str:
        """Return what a container printed: its last `tail` lines, or what is not older than `since` seconds.

        `previous` requests the output of the previous container, which ended.
        """
        query: dict[str, object] = {"container": container}
        if previous:
            query["previous"] = "true"
        if tail is not None:
            query["tailLines"] = tail
        if since is not None:
            query["sinceSeconds"] = since
        where = f"{path('Pod', pod, namespace)}/log"
        return self._patiently(lambda: self._once("get", where, query)).decode(errors="replace")
