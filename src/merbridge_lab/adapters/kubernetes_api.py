"""The API of a Kubernetes cluster, through the kubernetes client library.

Objects are the plain dictionaries of the API. Reads are retried while the API does not answer (an API server that is
restarted, or delayed, is back within seconds), and report this meanwhile.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import ssl
import time
from collections import defaultdict
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode, urlsplit

from merbridge_lab import polling, signals
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.memfd import MemFile
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from websocket import WebSocket

T = TypeVar("T")
Object = dict[str, Any]

#: Timeouts for a connection, and for an answer, in seconds.
_TIMEOUT = (3.0, 8.0)
#: How long requests to a silent API are retried, in seconds.
_PATIENCE = 40.0
_NOT_FOUND, _UNAUTHORIZED, _FORBIDDEN, _TOO_MANY, _SERVER_ERROR = 404, 401, 403, 429, 500
_MANAGER = "merlab"

#: The output of a command in a container: the first byte of each message tells its channel.
_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_STDOUT, _STDERR, _STATUS = 1, 2, 3
#: How often merlab checks, while a command runs in a container, whether it must stop; in seconds.
_GLANCE = 0.25
#: What kubelet, containerd and runc say of a container that ended, or was recreated, before the command ran in it.
#: What TLS says of certificates, be it OpenSSL here or an alert of the other end (RFC 8446, 6.2).
_OF_CERTIFICATES = re.compile(r"certificate|unknown[ _]ca", re.IGNORECASE)
_ENDED = re.compile(r"container not found|CONTAINER_EXITED|no running task|stopped container|has stopped|not running")

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
    "PeerAuthentication": "/apis/security.istio.io/v1/namespaces/{namespace}/peerauthentications/{name}",
}

#: The kinds of objects that are applied and found.
KINDS = frozenset(_NAMED)


class ApiUnavailableError(LabError):
    """The API does not answer, or answers that it is not available now."""


class NotFoundError(LabError):
    """The object does not exist."""


def path(kind: str, name: str = "", namespace: str = "default") -> str:
    """Return the path of an object, or without `name` that of all objects of its kind in the namespace."""
    return _NAMED[kind].format(namespace=namespace, name=name).rstrip("/")


def without_proxy(host: str) -> str:
    """Return a no_proxy value with which `host` is reached directly, and everything that was in it before."""
    told = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return ",".join(dict.fromkeys([*filter(None, told.split(",")), host]))


class Api:
    """One cluster, entered with the credentials of a kubeconfig that has one context."""

    def __init__(self, kubeconfig: Mapping[str, Any]) -> None:
        self._kubeconfig = kubeconfig
        cluster, user = kubeconfig["clusters"][0]["cluster"], kubeconfig["users"][0]["user"]
        self.server = str(cluster["server"])
        # The API is on this machine, whatever https_proxy says. Websockets, and the commands that we run, read the
        # environment.
        os.environ["no_proxy"] = without_proxy(str(urlsplit(self.server).hostname))
        self._files = {
            "ssl_ca_cert": MemFile(base64.b64decode(cluster["certificate-authority-data"])),
            "cert_file": MemFile(base64.b64decode(user["client-certificate-data"])),
            "key_file": MemFile(base64.b64decode(user["client-key-data"])),
        }
        self._certificate = base64.b64decode(user["client-certificate-data"])

    @functools.cached_property
    def _client(self) -> Any:  # noqa: ANN401 - the library has no types
        from kubernetes.client import ApiClient, Configuration
        from kubernetes.dynamic import DynamicClient

        configuration = Configuration()
        configuration.host = self.server
        for name, file in self._files.items():
            setattr(configuration, name, file.path)
        configuration.proxy = None
        configuration.retries = 0  # we do that, and report it
        # Without a discoverer the client sends no requests beforehand and writes no cache.
        return DynamicClient(ApiClient(configuration), discoverer=lambda *_: None)

    def is_at(self, cluster: Mapping[str, Any]) -> bool:
        """Report whether a kubeconfig's entry leads to this cluster: a recreated one has other keys and a new port."""
        ours = self._kubeconfig["clusters"][0]["cluster"]
        return all(ours[key] == cluster.get(key) for key in ("server", "certificate-authority-data"))

    @functools.cached_property
    def kubeconfig_file(self) -> str:
        """The path where other programs find the kubeconfig while this process runs."""
        import yaml

        self._files["kubeconfig"] = MemFile(yaml.safe_dump(dict(self._kubeconfig)).encode())
        return self._files["kubeconfig"].path

    # -- requests ---------------------------------------------------------------------------------------------------

    def _once(
        self, method: str, where: str, query: Mapping[str, object], body: object = None, content: str = ""
    ) -> bytes:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        signals.checkpoint()
        options: dict[str, Any] = {"query_params": list(query.items()), "_request_timeout": _TIMEOUT}
        if content:
            options["content_type"] = content
        try:
            response = self._client.request(method, where, body=body, serialize=False, **options)
        except ApiException as error:
            raise self._refused(error.status, error.body or str(error), method, where) from error
        except (HTTPError, OSError) as error:
            raise self._silent(error) from error
        return bytes(response.data)

    def _refused(self, status: int | None, said: str, method: str, where: str) -> LabError:
        try:
            said = json.loads(said)["message"]
        except (ValueError, KeyError, TypeError):
            said = said[:500]
        if status == _NOT_FOUND:
            return NotFoundError(f"there is no {where} in the cluster", stderr=said)
        if _ENDED.search(said):
            return NotFoundError(f"the container is not there any more in {where}", hint="merlab status", stderr=said)
        if status in (_UNAUTHORIZED, _FORBIDDEN):
            # An API gives its administrator this answer only while it starts and has not read its own rules yet.
            return self._expired() or ApiUnavailableError(
                f"the cluster does not let us {method} {where}",
                hint="merlab down --lab kind && merlab up --lab kind",
                stderr=said,
            )
        if status == _TOO_MANY or (status or 0) >= _SERVER_ERROR:
            return ApiUnavailableError(
                f"the API at {self.server} cannot answer now", hint="merlab doctor --lab kind", stderr=said
            )
        return LabError(f"the cluster refuses to {method} {where}", stderr=said)

    def _silent(self, error: Exception) -> LabError:
        said = str(error)
        # An end of TLS in the middle, a broken record: these are not about certificates.
        if isinstance(error, ssl.SSLCertVerificationError) or _OF_CERTIFICATES.search(said):
            return self._expired() or LabError(
                f"the certificates of the cluster at {self.server} are no longer valid",
                hint="merlab down --lab kind && merlab up --lab kind",
                stderr=said,
            )
        return ApiUnavailableError(
            f"the API of the cluster at {self.server} does not answer", hint="merlab doctor --lab kind", stderr=said
        )

    def _expired(self) -> LabError | None:
        from cryptography import x509

        certificate = x509.load_pem_x509_certificate(self._certificate)
        if hasattr(certificate, "not_valid_after_utc"):  # cryptography 42
            ends = certificate.not_valid_after_utc
        else:
            ends = certificate.not_valid_after.replace(tzinfo=timezone.utc)
        if ends > datetime.now(timezone.utc):
            return None
        return LabError(
            f"the certificates of the cluster expired on {ends:%Y-%m-%d}",
            hint="merlab down --lab kind && merlab up --lab kind",
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

    @change("run in a pod")
    def execute(
        self, namespace: str, pod: str, container: str, argv: Sequence[str], timeout: float
    ) -> tuple[int, str, str]:
        """Run `argv` in a container; return its exit status and both streams.

        Raise NotFoundError if the pod or the container is gone, ApiUnavailableError if the API does not answer or
        breaks off, LabError if the command cannot be run or does not end within `timeout` seconds.
        """
        from websocket import WebSocketBadStatusException, WebSocketException

        where = path("Pod", pod, namespace)
        query = [("container", container), ("stdout", "true"), ("stderr", "true"), *(("command", one) for one in argv)]
        signals.checkpoint()
        try:
            with self._upgraded(f"{where}/exec?{urlencode(query)}") as connection:
                told = _channels(connection, timeout)
        except WebSocketBadStatusException as error:
            said = (getattr(error, "resp_body", None) or b"").decode(errors="replace") or str(error)
            raise self._refused(error.status_code, said, "exec in", where) from error
        except (WebSocketException, OSError) as error:
            signals.checkpoint()
            raise self._silent(error) from error
        if told is None:
            raise LabError(f"{argv[0]} in {namespace}/{pod} did not end within {timeout:g} s", hint="merlab status")
        status = self._status(told[_STATUS], f"{argv[0]} in {namespace}/{pod}")
        return status, told[_STDOUT].decode(errors="replace"), told[_STDERR].decode(errors="replace")

    @contextmanager
    def _upgraded(self, where: str) -> Iterator[WebSocket]:
        """Open a websocket for the duration of the block; each of its steps has the timeout of an answer.

        Not with kubernetes.stream: that one waits for a connection, and for the answer on it, without a limit.
        """
        from websocket import create_connection

        keys = {"ca_certs": "ssl_ca_cert", "certfile": "cert_file", "keyfile": "key_file"}
        connection = create_connection(
            f"wss{self.server.removeprefix('https')}{where}",
            timeout=_TIMEOUT[1],
            sslopt={option: self._files[name].path for option, name in keys.items()},
            subprotocols=list(_PROTOCOLS),
        )
        try:
            yield connection
        finally:
            connection.shutdown()  # type: ignore[no-untyped-call]

    def _status(self, told: bytes, what: str) -> int:
        """Parse the Status object with which the API reports how a command ended. Raise LabError if it did not run."""
        if not told:
            raise ApiUnavailableError(
                f"the API of the cluster at {self.server} broke off {what}", hint="merlab doctor --lab kind"
            )
        status = json.loads(told)
        if status["status"] == "Success":
            return 0
        if status.get("reason") == "NonZeroExitCode":
            return int(next(one["message"] for one in status["details"]["causes"] if one["reason"] == "ExitCode"))
        said = str(status.get("message"))
        if _ENDED.search(said):
            raise NotFoundError(
                f"{what} did not run: its container is not there any more", hint="merlab status", stderr=said
            )
        raise LabError(f"{what} could not be run", hint="merlab status", stderr=said)


def _channels(connection: WebSocket, timeout: float) -> Mapping[int, bytes] | None:
    """Read each channel until the API closes the connection; None if it does not within `timeout` seconds.

    Raise Interrupted, or what the library raises if the connection is lost.
    """
    from websocket import ABNF, WebSocketTimeoutException

    channels: dict[int, bytes] = defaultdict(bytes)
    connection.settimeout(_GLANCE)
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        signals.checkpoint()
        try:
            kind, message = connection.recv_data(control_frame=True)
        except WebSocketTimeoutException:
            continue  # a partial message is kept for the next read
        if kind == ABNF.OPCODE_CLOSE:
            return channels
        if kind in (ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT) and message:
            channels[message[0]] += message[1:]
    return None
