"""Find the processes on this machine that hold a socket, by the descriptors of every process.

A socket does not show who may accept from it. pidfd_getfd(2), or a descriptor sent over a Unix socket, gives another
process the same socket that a server listens on, and the kernel's tables still show one listener. Not visible are
sockets that only io_uring or a message in transit holds: the kernel lists no owner for these.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from merbridge_lab.adapters.procfs import look

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_LIBC = ctypes.CDLL(None, use_errno=True)
#: kcmp(2) by machine; the second number is the one of all architectures newer than x86_64.
_SYS_KCMP = {"x86_64": 312}.get(platform.machine(), 272)
_KCMP_FILES = 2
_GONE = (errno.ENOENT, errno.ESRCH)


class Holders(NamedTuple):
    """The processes that hold each socket, by its inode; and those that could not be read, with the reason.

    Even root may be prevented from reading a process: by a security module, or a capability that root itself lacks.
    """

    known: dict[int, set[int]]
    barred: dict[int, str]


def holders(sockets: Collection[int]) -> Holders:
    """Return who holds each of `sockets`. Raises OSError.

    Processes that end meanwhile hold nothing. Takes about 10 ms on a machine with a thousand descriptors.
    """
    found = Holders({}, {})
    wanted = {f"socket:[{inode}]": inode for inode in sockets}
    for pid in (int(each.name) for each in Path("/proc").glob("[0-9]*")):
        try:
            for link in _links(pid):
                if (inode := wanted.get(link)) is not None:
                    found.known.setdefault(inode, set()).add(pid)
        except PermissionError as error:
            found.barred[pid] = error.strerror or str(error)
    return found


def owner(inode: int) -> str:
    """Describe a process that has the socket with this inode open, for a sentence."""
    with contextlib.suppress(OSError):
        for pid in sorted(holders([inode]).known.get(inode, ())):
            if (seen := look(pid)) is not None:
                return f"{' '.join(seen.command.split())} (pid {pid})"
    return "a process that cannot be found"


def _links(pid: int) -> Iterator[str]:
    for table in _tables(pid):
        for name in _names(table):
            try:
                yield os.readlink(f"{table}/{name}")  # noqa: PTH115 - a thousand of them
            except OSError as error:
                if error.errno not in _GONE:
                    raise


def _tables(pid: int) -> Iterator[str]:
    """Return the tables of descriptors of a process: its threads share one, unless a thread has its own."""
    yield f"/proc/{pid}/fd"
    for thread in map(int, _names(f"/proc/{pid}/task")):
        if thread != pid and _LIBC.syscall(_SYS_KCMP, pid, thread, _KCMP_FILES, 0, 0) != 0:
            yield f"/proc/{pid}/task/{thread}/fd"


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names alone, of a thousand
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise
