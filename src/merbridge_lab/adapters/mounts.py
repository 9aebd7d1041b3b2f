"""Mounts: created, changed and found with the system calls themselves.

A dozen mounts per pod with mount(8) would cost a tenth of a second; the calls take microseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from merbridge_lab.adapters.change import change

_LIBC = ctypes.CDLL(None, use_errno=True)

# <sys/mount.h>
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_NOSUID = 2
MS_NODEV = 4
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8


@dataclass(frozen=True)
class Mount:
    """One line of /proc/PID/mountinfo; see proc_pid_mountinfo(5)."""

    target: Path
    root: str
    fstype: str
    source: str
    options: frozenset[str]
    #: Major and minor of the file system's device, and the kernel's numbers of the mount and of its parent.
    device: str = field(default="", compare=False)
    number: int = field(default=0, compare=False)
    parent: int = field(default=0, compare=False)

    def is_within(self, folder: Path) -> bool:
        """Report whether it is on or below `folder`; as text, because commands ask it of thousands of mounts."""
        target, above = str(self.target), str(folder)
        return target == above or target.startswith(above if above.endswith("/") else f"{above}/")


_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


def _unescape(field: bytes) -> str:
    # mountinfo writes blank, tab, newline and backslash as three octal digits; any other byte stays as it is.
    return os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8)]), field) if b"\\" in field else field)


def table() -> list[Mount]:
    """List the mounts of this thread's namespace in the order of their creation."""
    return parse(raw())


def raw() -> bytes:
    """Return the same as the kernel writes it."""
    return Path("/proc/thread-self/mountinfo").read_bytes()


def parse(mountinfo: bytes) -> list[Mount]:
    """Parse a /proc/PID/mountinfo: bytes, because a mount point may have any name."""
    return [_mount(line) for line in mountinfo.split(b"\n") if line]


# Most lines of a table were in the one that was read before, and it is read several times for each pod.
@functools.lru_cache(maxsize=4096)
def _mount(line: bytes) -> Mount:
    # Neither part contains a blank, and a source may be empty (two blanks in a row).
    left, _, right = line.partition(b" - ")
    fields, (fstype, source, *_rest) = left.split(b" "), right.split(b" ")
    return Mount(
        Path(_unescape(fields[4])),
        _unescape(fields[3]),
        os.fsdecode(fstype),
        _unescape(source),
        frozenset(os.fsdecode(fields[5]).split(",")),
        os.fsdecode(fields[2]),
        int(fields[0]),
        int(fields[1]),
    )


def at(target: Path) -> Mount | None:
    """Return what is mounted on `target`; the topmost if there are several."""
    return next((mount for mount in reversed(table()) if mount.target == target), None)


def type_of(path: Path) -> str:
    """Return the type of the file system on which a path is, or would be; "" if that cannot be told."""
    path = path.resolve()
    found = ""
    deepest = -1
    for each in table():
        depth = len(each.target.parts)
        if path.is_relative_to(each.target) and depth >= deepest:  # of two at one place the later one covers the other
            found, deepest = each.fstype, depth
    return found


def below(target: Path) -> list[Mount]:
    """List the mounts on and below `target`, the latest first: the order in which they are unmounted."""
    return [mount for mount in reversed(table()) if mount.is_within(target)]


@change("mount")
def mount(source: str | Path, target: str | Path, fstype: str | None = None, flags: int = 0, data: str = "") -> None:
    """Mount `source` on `target`; the arguments are those of the system call. Raises OSError."""
    result = _LIBC.mount(
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode() if fstype else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def bind(source: str | Path, target: str | Path) -> None:
    """Make the file or directory `source` visible at `target` as well. Raises OSError."""
    mount(source, target, flags=MS_BIND)


@change("unmount")
def umount(target: Path) -> None:
    """Unmount the topmost mount on `target` at once; what still uses it keeps it alive invisibly. Raises OSError."""
    if _LIBC.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def take_away(target: Path) -> None:
    """Unmount everything on and below `target`, and delete each mount point; succeed if nothing is there.

    Deleting a mount point removes the mount from every *other* mount namespace that copied it (vfs_rmdir and vfs_unlink
    call detach_mounts). Otherwise a service that the system started meanwhile would keep our namespaces. Raises
    OSError.
    """
    try:
        target.lstat()
    except FileNotFoundError:
        return  # nothing can be mounted there, or below
    except OSError:
        pass  # a mount that does not answer is one
    for found in below(target):
        umount(found.target)
        with contextlib.suppress(OSError):
            _delete(found.target)
    with contextlib.suppress(FileNotFoundError):
        _delete(target)


@change("delete a mount point")
def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()
