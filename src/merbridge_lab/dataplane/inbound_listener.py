"""The sockets on which a sidecar accepts inbound connections, found among those of its process."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from merbridge_lab.adapters import netns, process_sockets
from merbridge_lab.istio_facts import INBOUND_PORT

if TYPE_CHECKING:
    from collections.abc import Generator


def _is_inbound(sock: socket.socket, cookie: int) -> bool:
    """Report whether it is an inbound listener, and takes IPv4."""
    with contextlib.suppress(OSError):
        return (
            sock.family in (socket.AF_INET, socket.AF_INET6)
            and sock.type == socket.SOCK_STREAM
            and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            and sock.getsockname()[1] == INBOUND_PORT
            and netns.cookie_of(sock) == cookie
            and not (sock.family == socket.AF_INET6 and sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
        )
    return False


def inbound_listeners(pid: int, cookie: int) -> Generator[tuple[int, int], None, None]:
    """Yield each socket on which process `pid` accepts inbound connections: our own descriptor of it, and its cookie.

    A descriptor is open until the next one is requested. `cookie` is that of the network namespace. Raise LabError if
    the kernel refuses it.
    """
    with contextlib.closing(_inbound(pid, cookie)) as found:
        for sock in found:
            yield sock.fileno(), process_sockets.cookie(sock)


def inbound_cookies(pid: int, cookie: int) -> set[int]:
    """Return the cookies of all sockets on which process `pid` accepts inbound connections: one per thread of Envoy."""
    return {number for _, number in inbound_listeners(pid, cookie)}


def _inbound(pid: int, cookie: int) -> Generator[socket.socket, None, None]:
    """Yield our own descriptors of the inbound listeners of `pid`, each open until the next one is requested.

    Raise LabError if the kernel does not allow reading them.
    """
    what = f"the listener of the sidecar (pid {pid})"
    with contextlib.closing(process_sockets.sockets_of(pid, what)) as found:
        for _, sock in found:
            if _is_inbound(sock, cookie):
                yield sock
