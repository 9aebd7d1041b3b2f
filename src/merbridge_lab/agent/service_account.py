"""The agent's way to the API server: with the token of its pod's service account, if the pod has one."""

from __future__ import annotations

import http.client
import json
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Where the kubelet puts the token and the certificate of the API server.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
#: How long an answer may take, in seconds.
_ANSWER = 1.0
#: What may go wrong with a question: no connection, no HTTP, no JSON.
FAILURES = (OSError, http.client.HTTPException, ValueError)


class Answer(NamedTuple):
    """The status of an answer of the API server with its reason, and its body."""

    status: int
    reason: str
    body: bytes


class ServiceAccount:
    """The service account of this pod, in the API server's eyes: one connection a request."""

    def __init__(self, folder: Path = ACCOUNT, environ: Mapping[str, str] = os.environ) -> None:
        self._folder = folder
        self._host = environ.get("KUBERNETES_SERVICE_HOST", "")
        self._port = int(environ.get("KUBERNETES_SERVICE_PORT") or 443)

    @property
    def exists(self) -> bool:
        """Report whether there is a token, and a server to show it to."""
        return bool(self._host) and (self._folder / "token").exists()

    def ask(self, method: str, path: str, told: Mapping[str, Any] | None = None) -> Answer:
        """Send a request, with JSON if there is any, and return the answer. Raises one of FAILURES."""
        trusted = ssl.create_default_context(cafile=str(self._folder / "ca.crt"))
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=_ANSWER, context=trusted)
        try:
            token = (self._folder / "token").read_text().strip()  # the kubelet renews it
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
            if told is not None:
                headers["Content-Type"] = "application/json"
            connection.request(method, path, json.dumps(told) if told is not None else None, headers)
            with connection.getresponse() as answer:  # also if reading it fails: it keeps the socket
                return Answer(answer.status, answer.reason, answer.read())
        finally:
            connection.close()
