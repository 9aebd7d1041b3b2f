"""Does a server's sidecar let in only who shows a certificate of the lab's authority? Tried, from the node.

Which configuration Envoy runs and which authorities it trusts it says itself, by an admin interface that whoever
started it with others could also answer for it. So two strangers knock: one without a certificate, and one with a
certificate that has the right name and is of another authority. Neither may get a single byte of an answer.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

from merbridge_lab.adapters import netns
from merbridge_lab.adapters.memory import Unnamed
from merbridge_lab.drivers.embedded import layout
from merbridge_lab.drivers.embedded.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path

    from merbridge_lab.drivers.embedded.layout import PodSpec

#: For all of one conversation's steps, in seconds each: both ends are on this machine.
_PATIENCE = 2.0
_ASKED = b"GET /hello HTTP/1.1\r\nHost: helloworld:5000\r\nConnection: close\r\n\r\n"


def problems(node: Path, pod: PodSpec) -> list[str]:
    """Say which strangers the sidecar of the server `pod` answers, asked from the network namespace `node`."""
    strangers = {
        "shows no certificate": _client(),
        "shows a certificate of another authority than the lab's": _client(Authority.fresh().issue(pod.identity)),
    }
    return [
        f"the sidecar of {pod.name} serves a client that {what}"
        for what, who in strangers.items()
        if _serves(node, pod, who)
    ]


def _client(shown: tuple[bytes, bytes] | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # whom we speak to is not the question
    context.set_alpn_protocols(["istio"])
    if shown is not None:
        with contextlib.closing(Unnamed(b"".join(shown))) as file:
            context.load_cert_chain(file.path)
    return context


def _serves(node: Path, pod: PodSpec, client: ssl.SSLContext) -> bool:
    """Whether one byte of an answer comes. What keeps it from coming is for others to tell."""
    try:
        plain = netns.run_inside(node, lambda: socket.create_connection((pod.ip, layout.HTTP_PORT), _PATIENCE))
        with plain, client.wrap_socket(plain) as secured:
            secured.sendall(_ASKED)
            return bool(secured.recv(1))
    except OSError:  # refused, reset, silent, or an alert: ssl.SSLError is one of these
        return False
