"""Socket filters on the sockets of a pod: SO_ATTACH_FILTER and SO_ATTACH_BPF cut or drop what arrives.

A filter is attached to one socket, and to what a listener accepts from then on. No list of programs, links or rules
shows it, so each socket is read. Not checked: SO_ATTACH_REUSEPORT_*, which the kernel does not report. Such a program
can choose among the listeners of one user on one port, and those must all be the sidecar's own; or it can drop, which
is detected.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
from typing import TYPE_CHECKING

from merbridge_lab.adapters.process_sockets import sockets_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SO_GET_FILTER = 26

_libc = ctypes.CDLL(None, use_errno=True)


def problems(name: str, processes: Mapping[str, int]) -> Iterator[str]:
    """Describe which TCP sockets of a pod's processes, by kind, have a filter.

    Raise LabError if they may not be read.
    """
    for kind, pid in processes.items():
        with contextlib.closing(sockets_of(pid, f"the sockets of the {kind} of {name} (pid {pid})")) as found:
            for number, sock in found:
                if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
                    continue
                if (filter_ := attached(sock.fileno())) is not None:
                    yield (
                        f"on {_described(sock)} of the {kind} of {name} (pid {pid}, descriptor {number}) there is a"
                        f" socket filter, {filter_}: it can truncate or drop what arrives"
                    )


def attached(fd: int) -> str | None:
    """Describe which filter is on a socket; None if there is none. Raises OSError."""
    # With a buffer of size zero, the kernel returns the number of instructions: a larger size is counted in these, not
    # in bytes.
    length = ctypes.c_uint32(0)
    if _libc.getsockopt(fd, socket.SOL_SOCKET, _SO_GET_FILTER, None, ctypes.byref(length)) == 0:
        return f"{length.value} instructions of classic BPF" if length.value else None
    code = ctypes.get_errno()
    if code == errno.EACCES:
        return "an eBPF program"  # which has no classic form to show
    raise OSError(code, os.strerror(code))


def _described(sock: socket.socket) -> str:
    try:
        host, port, *_ = sock.getsockname()
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        return "a socket"
    return f"the {'listener' if listens else 'connection'} at {host}:{port}"
