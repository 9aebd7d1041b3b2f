"""Pods as the dataplane sees them: a network namespace, an address, and perhaps a sidecar that already listens."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters.kernel_features import FIND_PTRACE_SCOPE, NOBODY_TRACES, ptrace_scope
from merbridge_lab.dataplane import abi
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_CLONE_NEWNET = 0x40000000
_SO_COOKIE = 57
_SO_NETNS_COOKIE = 71  # Linux 5.14
_PIDFD_GETFD = {"x86_64": 438, "aarch64": 438}

#: A descriptor that was closed, or of a process that ended.
_GONE = frozenset({errno.EBADF, errno.ENOENT, errno.ESRCH})

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Pod:
    """A pod to serve; `netns` is a file that represents its network namespace."""

    name: str
    ip: str
    netns: Path
    sidecar_pid: int | None = None
    app_pid: int | None = None

    @property
    def ip4(self) -> int:
        """Return the address as the kernel side stores it: 4 bytes in network order, read as a native integer."""
        return int(struct.unpack("=I", socket.inet_aton(self.ip))[0])


def address(ip4: int) -> str:
    """Return as text an address that the kernel side stores."""
    return socket.inet_ntoa(struct.pack("=I", ip4))


def netns_cookie(netns: Path) -> int:
    """Return the cookie of a network namespace: unique since boot, unlike its inode number. Raises LabError."""
    result: list[int | OSError] = []

    def enter() -> None:
        # setns() changes only the calling thread, so running in a separate thread is enough.
        try:
            with netns.open("rb") as file:
                if _libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))  # noqa: TRY301
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                result.append(_cookie_of(probe))
        except OSError as failed:
            result.append(failed)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if isinstance(result[0], OSError):
        raise LabError(
            f"the network namespace {netns} cannot be entered: {result[0]}", hint="merlab status", id="dataplane.failed"
        )
    return result[0]


def _cookie_of(sock: socket.socket) -> int:
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])


def _pidfd_getfd(pidfd: int, number: int) -> int:
    call = ctypes.c_long(_PIDFD_GETFD.get(platform.machine(), 438))
    got = int(_libc.syscall(call, ctypes.c_long(pidfd), ctypes.c_long(number), ctypes.c_long(0)))
    if got < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"take descriptor {number}: {os.strerror(code)}")
    return got


def _is_inbound(sock: socket.socket, cookie: int) -> bool:
    with contextlib.suppress(OSError):
        return (
            sock.family in (socket.AF_INET, socket.AF_INET6)
            and sock.type == socket.SOCK_STREAM
            and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            and sock.getsockname()[1] == abi.constants()["PORT_INBOUND"]
            and _cookie_of(sock) == cookie
        )
    return False


@contextlib.contextmanager
def inbound_listener(pid: int, cookie: int) -> Iterator[int | None]:
    """Return our own descriptor of the socket on which process `pid` accepts inbound connections, or None.

    Raise LabError if the kernel refuses it.
    """
    with contextlib.closing(_inbound(pid, cookie)) as found:
        sock = next(found, None)
        yield sock.fileno() if sock else None


def inbound_cookies(pid: int, cookie: int) -> set[int]:
    """Return the cookies of all sockets on which process `pid` accepts inbound connections: one per thread of Envoy."""
    with contextlib.closing(_inbound(pid, cookie)) as found:
        return {int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0]) for sock in found}


def _inbound(pid: int, cookie: int) -> Generator[socket.socket, None, None]:
    """Yield our own descriptors of the inbound listeners of `pid`, each open until the next one is requested.

    Raise LabError if the kernel does not allow reading them.
    """
    what = f"the listener of the sidecar (pid {pid})"
    with contextlib.closing(sockets_of(pid, what)) as found:
        for _, sock in found:
            if _is_inbound(sock, cookie):
                yield sock


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
