"""The agent's answers on the loopback: /metrics for Prometheus, /readyz and /healthz for the kubelet.

It takes one order there, POST /look: to look at all pods, and to ask for their namespaces, now.
"""

from __future__ import annotations

import http.server
import threading
import time
from typing import TYPE_CHECKING

from merbridge_lab.agent import agent_status
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.agent.agent_status import Sources

#: The loop turns at least this often, in seconds; if it does not, it hangs.
_ALIVE = 60.0


class Pulse:
    """When the loop last turned."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def beat(self) -> None:
        """Note that the loop turns."""
        self._at = time.monotonic()

    @property
    def is_alive(self) -> bool:
        """Report whether the loop has turned lately."""
        return time.monotonic() - self._at < _ALIVE


def start(
    port: int, sources: Sources, pulse: Pulse, metrics: Callable[[], bytes], look: Callable[[], None] = lambda: None
) -> int:
    """Answer on 127.0.0.1 in a thread that ends with the process; return the port. Raise LabError if it is in use.

    `look` is called for each POST /look.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(*_answer(self.path.partition("?")[0], sources, pulse, metrics))

        def do_POST(self) -> None:
            if self.path == "/look":
                look()
            self._send(*((202, b"looks\n") if self.path == "/look" else (404, b"/look\n")))

        def _send(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing: whoever asks does so every few seconds."""

    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise LabError(
            f"the agent's port {port} on 127.0.0.1 is not available: {error.strerror}",
            hint="ss --tcp --listening --processes",
            id="file.not_written",
        ) from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="merlab-http", daemon=True).start()
    return int(server.server_address[1])


def _answer(path: str, sources: Sources, pulse: Pulse, metrics: Callable[[], bytes]) -> tuple[int, bytes]:
    """Return the status and the text for a path."""
    if path == "/metrics":
        try:
            return 200, metrics()
        except LabError as error:
            return 503, f"{error.what}\n".encode()
    if path == "/healthz":
        return (200, b"alive\n") if pulse.is_alive else (503, b"the loop hangs\n")
    if path == "/readyz":
        return (200, b"ready\n") if agent_status.status(sources)["ready"] else (503, b"not ready\n")
    return 404, b"/metrics, /readyz, /healthz\n"
