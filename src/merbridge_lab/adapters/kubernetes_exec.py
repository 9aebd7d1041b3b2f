"""Commands in a container of a pod, through the API of the cluster (pods/exec, over a websocket)."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from merbridge_lab import signals
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.kubernetes_api import ENDED, TIMEOUT, ApiUnavailableError, NotFoundError, path
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from websocket import WebSocket

    from merbridge_lab.adapters.kubernetes_api import Api

#: The output of a command in a container: the first byte of each message tells its channel.
_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_STDOUT, _STDERR, _STATUS = 1, 2, 3
#: How often merlab checks, while a command runs in a container, whether it must stop; in seconds.
_GLANCE = 0.25


@change("run in a pod")
def execute(
    api: Api, namespace: str, pod: str, container: str, argv: Sequence[str], timeout: float
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
        with _upgraded(api, f"{where}/exec?{urlencode(query)}") as connection:
            told = _channels(connection, timeout)
    except WebSocketBadStatusException as error:
        said = (getattr(error, "resp_body", None) or b"").decode(errors="replace") or str(error)
        raise api.refused(error.status_code, said, "exec in", where) from error
    except (WebSocketException, OSError) as error:
        signals.checkpoint()
        raise api.unavailable(error) from error
    if told is None:
        raise LabError(
            f"{argv[0]} in {namespace}/{pod} did not end within {timeout:g} s", hint="merlab status", id="tool.failed"
        )
    status = _status(api, told[_STATUS], f"{argv[0]} in {namespace}/{pod}")
    return status, told[_STDOUT].decode(errors="replace"), told[_STDERR].decode(errors="replace")


@contextmanager
def _upgraded(api: Api, where: str) -> Iterator[WebSocket]:
    """Open a websocket for the duration of the block; each of its steps has the timeout of an answer.

    Not with kubernetes.stream: that one waits for a connection, and for the answer on it, without a limit.
    """
    from websocket import create_connection

    connection = create_connection(
        f"ws{api.server.removeprefix('http')}{where}",
        timeout=TIMEOUT[1],
        subprotocols=list(_PROTOCOLS),
        **api.websocket_options(),
    )
    try:
        yield connection
    finally:
        connection.shutdown()  # type: ignore[no-untyped-call]


def _status(api: Api, told: bytes, what: str) -> int:
    """Parse the Status object with which the API reports how a command ended. Raise LabError if it did not run."""
    if not told:
        raise ApiUnavailableError(f"the API of the cluster at {api.server} broke off {what}", hint="merlab doctor")
    status = json.loads(told)
    if status["status"] == "Success":
        return 0
    if status.get("reason") == "NonZeroExitCode":
        return int(next(one["message"] for one in status["details"]["causes"] if one["reason"] == "ExitCode"))
    said = str(status.get("message"))
    if ENDED.search(said):
        raise NotFoundError(f"{what} did not run: its container no longer exists", hint="merlab status", stderr=said)
    raise LabError(f"{what} could not be run", hint="merlab status", stderr=said, id="pod.restarted")


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
