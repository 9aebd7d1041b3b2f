"""Probe whether somebody answers on a port on the loopback of a network namespace."""

from __future__ import annotations

import http
import http.client
import socket
from typing import TYPE_CHECKING

from merbridge_lab.adapters.netns import run_inside

if TYPE_CHECKING:
    from pathlib import Path

#: How long a healthy process may take to answer, in seconds; a stopped one never does.
_ANSWER = 0.5
#: The same for a long answer.
_TELL = 2.0


def fetch(netns: Path, port: int, path: str) -> str | None:
    """Return the body of the answer to GET `path`; None if there is no such answer in time."""

    def ask() -> str | None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TELL)
        try:
            connection.request("GET", path, headers={"connection": "close"})
            answer = connection.getresponse()
            body = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException):
            return None
        else:
            return body if answer.status == http.HTTPStatus.OK else None
        finally:
            connection.close()

    return run_inside(netns, ask)


def post(netns: Path, port: int, path: str) -> int | None:
    """Send an empty POST to `path`, and return the status of the answer; None if there is none in time."""

    def ask() -> int | None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TELL)
        try:
            connection.request("POST", path, headers={"connection": "close"})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    return run_inside(netns, ask)


def says_ok(netns: Path, port: int, path: str, address: str = "127.0.0.1") -> bool:
    """Report whether GET `path` is answered with status 200; the request names `address` as its host."""
    host = "merlab" if address == "127.0.0.1" else f"{address}:{port}"
    request = f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()

    def ask() -> bool:
        try:
            with socket.create_connection((address, port), timeout=_ANSWER) as connection:
                connection.sendall(request)
                return connection.recv(64).startswith(b"HTTP/1.1 200 ")
        except OSError:
            return False

    return run_inside(netns, ask)
