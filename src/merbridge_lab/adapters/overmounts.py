"""Mounts over files of the kernel that merlab reads: those of a process in /proc, those of a cgroup.

Whoever covers /proc/PID/maps or a cgroup.procs with another file decides what merlab reads there. No machine mounts
anything at these places by itself (other mounts below /proc, such as /proc/sys/fs/binfmt_misc, are allowed). The table
of mounts is such a file, too, so it is read without following mounts: openat2(2) can refuse to cross one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import cgroup as cgroups
from merbridge_lab.adapters import mounts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from merbridge_lab.adapters.mounts import Mount

_LIBC = ctypes.CDLL(None, use_errno=True)
_SYS_OPENAT2 = 437
# <linux/openat2.h>
_RESOLVE_NO_XDEV, _RESOLVE_NO_MAGICLINKS = 1, 2
# <linux/magic.h>
_PROC, _CGROUP2 = 0x9FA0, 0x63677270


#: Links that lead to /proc/PID.
_LINKS = ("self", "thread-self", "net", "mounts")
#: What is read of every process, whoever owns it; descriptors.py.
_ASKED_OF_ALL = {"fd", "task"}


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def process_of(target: Path) -> str:
    """Return the process of a place at or below /proc/PID. The links that lead there count; "" for any other place."""
    parts = target.parts
    if parts[:2] != ("/", "proc") or len(parts) < 3:  # noqa: PLR2004 - /, proc, PID
        return ""
    return parts[2] if parts[2].isdigit() or parts[2] in _LINKS else ""


def problems(cgroup: Path) -> list[str]:
    """Describe, one sentence each, what covers files of `cgroup`, of cgroups below it, and of processes.

    No file may be covered of the processes in that cgroup and of this process. Of other processes, no file may be
    covered that tells who holds a socket. Raises OSError, LabError.
    """
    with _opened(Path("/proc")) as proc:
        if _kind(proc) != _PROC or _read_link(proc, "self") != str(os.getpid()):
            return ["/proc is not what the kernel has there for this process: something is mounted over it"]
        try:
            table = mounts.parse(_read(proc, "thread-self/mountinfo"))
        except OSError as error:
            return [f"the table of mounts, /proc/{os.getpid()}/mountinfo, could not be read: {error.strerror}"]
        # The files of the cgroup tell which processes are its own.
        if found := [*_of_cgroup(proc, table, cgroup)]:
            return found
        return [*_of_processes(table, {os.getpid(), *cgroups.all_processes(cgroup)})]


def _of_processes(table: list[Mount], own: set[int]) -> Iterator[str]:
    whose = {*_LINKS, *map(str, own)}
    for target in dict.fromkeys(mount.target for mount in table):
        if (process := process_of(target)) and (process in whose or {*target.parts[3:4]} <= _ASKED_OF_ALL):
            yield _covered(target)


def _of_cgroup(proc: int, table: list[Mount], cgroup: Path) -> Iterator[str]:
    below = [mount.target for mount in table if mount.is_within(cgroup)]
    yield from map(_covered, dict.fromkeys(below))
    if below or not cgroup.is_dir():
        return
    with _opened(cgroup) as found:
        # By the number of the mount: a table does not show which of several on one place is the topmost.
        told = _read(proc, f"self/fdinfo/{found}").split()
        number = int(told[told.index(b"mnt_id:") + 1])
        roots = [mount.root for mount in table if mount.number == number]
        if _kind(found) != _CGROUP2 or roots != ["/"]:
            yield f"{cgroup} is not in the machine's hierarchy of cgroups: something is mounted over {cgroup.parent}"


def _covered(target: Path) -> str:
    return f"{target} is covered by a mount: what is read there is not the kernel's (umount {target})"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _kind(descriptor: int) -> int:
    """Return the type of a file system, as the kernel reports it. Raises OSError."""
    room = ctypes.create_string_buffer(512)  # struct statfs; its first member is a long
    if _LIBC.fstatfs(descriptor, room) != 0:
        raise _error("fstatfs")
    return ctypes.c_long.from_buffer(room).value


def _read_link(proc: int, name: str) -> str:
    try:
        return os.readlink(name, dir_fd=proc)
    except OSError:  # a /proc of a PID namespace that we are not in
        return ""


def _read(proc: int, path: str) -> bytes:
    """Read a file below /proc, without crossing a mount. Raises OSError."""
    how = _How(os.O_RDONLY | os.O_CLOEXEC, 0, _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS)
    descriptor = _LIBC.syscall(_SYS_OPENAT2, proc, path.encode(), ctypes.byref(how), ctypes.sizeof(how))
    if descriptor < 0:
        raise _error(path)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
