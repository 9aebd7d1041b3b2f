"""Test from the node that a server's sidecar accepts only clients with a certificate of the lab's authority.

Envoy itself reports its configuration and trusted authorities, through an admin interface. Whoever started Envoy with
others could also fake that answer. So two unknown clients connect: one without a certificate, and one with a
certificate that has the right name but another authority. Neither may get a single byte of an answer.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

from merbridge_lab.adapters import netns
from merbridge_lab.adapters.memfd import MemFile
from merbridge_lab.labs.embedded import topology
from merbridge_lab.labs.embedded.certificates import Authority
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from pathlib import Path

    from merbridge_lab.labs.embedded.topology import PodSpec

#: For each step of a conversation, in seconds: both ends are on this machine, which may be busy.
_PATIENCE = 5.0
_ASKED = b"GET /hello HTTP/1.1\r\nHost: helloworld:5000\r\nConnection: close\r\n\r\n"


def problems(node: Path, pod: PodSpec) -> list[str]:
    """Describe which unknown clients the sidecar of the server `pod` answers, dialled from the namespace `node`.

    If no client could connect, this is a problem, too: then the behaviour is unknown.
    """
    strangers = {
        "shows no certificate": _client(),
        "shows a certificate of another authority than the lab's": _client(Authority.fresh().issue(pod.identity)),
    }
    try:
        served = [what for what, who in strangers.items() if _serves(node, pod, who)]
    except OSError as error:
        return [str(unread(f"whether the sidecar of {pod.name} serves clients outside the mesh", error))]
    return [f"the sidecar of {pod.name} serves a client that {what}" for what in served]


def _client(shown: tuple[bytes, bytes] | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the identity of the peer is not tested
    context.set_alpn_protocols(["istio"])
    if shown is not None:
        with contextlib.closing(MemFile(b"".join(shown))) as file:
            context.load_cert_chain(file.path)
    return context


def _serves(node: Path, pod: PodSpec, client: ssl.SSLContext) -> bool:
    """Report whether one byte of an answer arrives; False if the connection is closed, with or without an alert.

    Raise OSError if nobody is reached, or neither happens in time.
    """
    plain = netns.run_inside(node, lambda: socket.create_connection((pod.ip, topology.HTTP_PORT), _PATIENCE))
    try:
        with plain, client.wrap_socket(plain) as secured:
            secured.sendall(_ASKED)
            return bool(secured.recv(1))
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        return False
