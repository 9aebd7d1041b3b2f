"""Take the sockets of another process (pidfd_getfd), and read the cookie of a socket."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters.kernel_features import FIND_PTRACE_SCOPE, NOBODY_TRACES, ptrace_scope
from merbridge_lab.adapters.system_call import system_call
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Generator

#: The same number on every architecture: it is newer than the common table.
_PIDFD_GETFD = 438

#: getsockopt option (include/uapi/asm-generic/socket.h).
_SO_COOKIE = 57

#: A descriptor that was closed, or of a process that ended.
_GONE = frozenset({errno.EBADF, errno.ENOENT, errno.ESRCH})


def cookie(sock: socket.socket) -> int:
    """Return the cookie of a socket: never used twice. Raises OSError."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0])


def _pidfd_getfd(pidfd: int, number: int) -> int:
    try:
        return system_call(_PIDFD_GETFD, pidfd, number, 0)
    except OSError as error:
        raise OSError(error.errno, f"take descriptor {number}: {error.strerror}") from None


def sockets_of(pid: int, what: str) -> Generator[tuple[int, socket.socket], None, None]:
    """Yield our own descriptors of the sockets of `pid`, with its own numbers, each open until the next is requested.

    Raise LabError, which says that `what` is not available, if the kernel does not allow reading them.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # it has just ended
    except OSError as refused:
        raise _refused(pid, what, refused) from refused
    try:
        for entry in _descriptors(pid, what):
            try:
                if not str(entry.readlink()).startswith("socket:"):
                    continue
                taken = _pidfd_getfd(pidfd, int(entry.name))
            except OSError as error:
                if error.errno in _GONE:
                    continue
                raise _refused(pid, what, error) from error
            try:
                sock = socket.socket(fileno=taken)
            except OSError:
                os.close(taken)
                continue  # of a family that Python does not know
            with sock:
                yield int(entry.name), sock
    finally:
        os.close(pidfd)


def _descriptors(pid: int, what: str) -> list[Path]:
    try:
        return sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda path: int(path.name))
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise _refused(pid, what, error) from error


def _refused(pid: int, what: str, error: OSError) -> LabError:
    """Build the error that explains why nobody may read the sockets of a process, and what to type."""
    what = f"{what} is not available: {error.strerror or error}"
    if error.errno not in (errno.EPERM, errno.EACCES):
        return LabError(what, hint=f"ls -l /proc/{pid}/fd", id="dataplane.failed")
    if ptrace_scope() == NOBODY_TRACES:
        why = (
            f"kernel.yama.ptrace_scope is {NOBODY_TRACES}, which forbids it to root too, until the next boot without it"
        )
        return LabError(f"{what}; {why}", hint=FIND_PTRACE_SCOPE, id="dataplane.failed")
    why = "this requires CAP_SYS_PTRACE, and no seccomp filter that blocks pidfd_getfd"
    return LabError(f"{what}; {why}", hint="merlab doctor", id="dataplane.failed")
