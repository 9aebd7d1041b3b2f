"""Options of the sockets on which a pod's app and sidecar listen: as they set them, or changed from outside.

Whoever may take a process's socket may set options on it. All connections that it accepts from then on inherit them: a
mark, a time to live, TCP_DEFER_ACCEPT. Each option is compared with that of a temporary socket in the same network
namespace. App and sidecar themselves only allow others to bind beside them, and never wait for a connection
(O_NONBLOCK).
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from typing import TYPE_CHECKING

from merbridge_lab.adapters import netns
from merbridge_lab.adapters.process_sockets import sockets_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_SOCKET, _IP, _TCP = socket.SOL_SOCKET, socket.IPPROTO_IP, socket.IPPROTO_TCP
_LEVELS = {_SOCKET: range(1, 90), _IP: range(1, 56), _TCP: range(1, 50)}
_LONG = 64
#: Options that tell who a listener is, or what arrived at it: SO_ERROR, SO_PEERCRED, SO_ATTACH_FILTER
#: (socket_filters.py), SO_PEERNAME, SO_ACCEPTCONN, SO_PEERSEC, SO_INCOMING_CPU, SO_MEMINFO, SO_INCOMING_NAPI_ID,
#: SO_COOKIE, SO_PEERGROUPS, SO_PEERPIDFD; IP_PROTOCOL, which tells the port; TCP_INFO, TCP_TIMESTAMP, TCP_CC_INFO.
_OF_SOCKET, _OF_TCP = (4, 17, 26, 28, 30, 31, 49, 55, 56, 57, 59, 77), (11, 24, 26)
_OWN = {(_IP, 52), *((_SOCKET, each) for each in _OF_SOCKET), *((_TCP, each) for each in _OF_TCP)}
#: Options that a process may choose: SO_REUSEADDR, SO_REUSEPORT.
_CHOSEN = {(_SOCKET, 2), (_SOCKET, 15)}
#: Options that the namespace's settings gave when the socket was created. sysctl_drift.py reports if the settings
#: changed since: SO_SNDBUF, SO_RCVBUF, SO_TXREHASH, TCP_CONGESTION. A buffer size that somebody set is locked
#: (SO_BUF_LOCK, since Linux 5.14).
_OF_SETTINGS = {(_SOCKET, 7), (_SOCKET, 8), (_SOCKET, 74), (_TCP, 13)}
#: SO_BUSY_POLL, which comes from a setting of the whole machine (net.core.busy_read) that may have been different
#: before.
_OF_MACHINE = (_SOCKET, 46)
_NAMES = {
    **{(_SOCKET, getattr(socket, name)): name for name in dir(socket) if name.startswith("SO_")},
    **{(_IP, getattr(socket, name)): name for name in dir(socket) if name.startswith("IP_") and name != "IP_DEFAULT"},
    **{(_TCP, getattr(socket, name)): name for name in dir(socket) if name.startswith("TCP_")},
}


def problems(name: str, namespace: Path, processes: Mapping[str, int]) -> Iterator[str]:
    """Describe which options of the listeners of a pod's processes, by kind, somebody else has set.

    Raise OSError, or LabError if the sockets may not be read.
    """
    new = netns.run_inside(namespace, _of_new)
    for kind, pid in processes.items():
        whose = f"the {kind} of {name}"
        with contextlib.closing(sockets_of(pid, f"the listeners of {whose} (pid {pid})")) as found:
            for _, sock in found:
                if where := _listens_at(sock):
                    which = f"the listener at {where} of {whose} (pid {pid})"
                    for option, told in differing(sock, new):
                        yield f"{option} of {which} is {told}"
                    if os.get_blocking(sock.fileno()):
                        yield f"{which} has lost O_NONBLOCK: its process blocks where it should continue"


def _listens_at(sock: socket.socket) -> str:
    """Describe where a socket listens by TCP; "" if it does not."""
    with contextlib.suppress(OSError):
        is_tcp = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
        if is_tcp and sock.getsockopt(_SOCKET, socket.SO_ACCEPTCONN):
            host, port, *_ = sock.getsockname()
            return f"{host}:{port}"
    return ""


def _of_new() -> dict[tuple[int, int], bytes]:
    """Return the options of a temporary TCP socket in the calling thread's network namespace."""
    with socket.socket() as sock:
        return _options(sock)


def _options(sock: socket.socket) -> dict[tuple[int, int], bytes]:
    found = {}
    for key in _known():
        with contextlib.suppress(OSError):
            found[key] = sock.getsockopt(*key, _LONG)
    return found


@functools.cache
def _known() -> tuple[tuple[int, int], ...]:
    """List the options that this kernel reports for a listener, except for those that are never compared."""
    but = _OWN | _CHOSEN | _OF_SETTINGS
    known = []
    with socket.socket() as sock:
        for level, numbers in _LEVELS.items():
            for number in numbers:
                with contextlib.suppress(OSError):
                    sock.getsockopt(level, number, _LONG)
                    known += [(level, number)] * ((level, number) not in but)
    return tuple(known)


def differing(sock: socket.socket, new: Mapping[tuple[int, int], bytes]) -> Iterator[tuple[str, str]]:
    """Yield each option of a listener that differs from that of a `new` socket, with its value and the expected one."""
    own = _options(sock)
    for key in sorted(new.keys() | own.keys()):
        if own.get(key) != new.get(key) and not (key == _OF_MACHINE and not any(own.get(key, b""))):
            name = _NAMES.get(key, f"option {key[1]} of level {key[0]}")
            yield name, f"{_told(own.get(key))}, not {_told(new.get(key))}"


def _told(value: bytes | None) -> str:
    if value is None:
        return "not available"
    return str(int.from_bytes(value, "little")) if len(value) <= 8 else value.hex()  # noqa: PLR2004 - a number's bytes
