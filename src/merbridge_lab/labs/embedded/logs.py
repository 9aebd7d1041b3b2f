"""The logs of a lab: read from their ends, bounded so that they do not fill the lab's file system; a check for room.

They are on a tmpfs of their own, and processes that append to them keep them open. Old lines are cut off in place, so
that these processes continue with the same file: all of them append (O_APPEND), and so write at its new end.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import BinaryIO

#: A longer log is cut to its last so many bytes.
LONGEST, KEPT = 16 << 20, 2 << 20
#: With less free space than this, a sidecar may not write the record that is awaited.
_NEEDED = 64 << 10
NAMES = ("access.log", "envoy.log", "app.log")


def opened(path: Path) -> BinaryIO:
    """Open a log for reading; never block, even if the log was replaced by a FIFO without a writer.

    Raises OSError, also for anything but a plain file.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))
    return file


def tail(path: Path, size: int = KEPT) -> str:
    """Return the last `size` bytes of a log, whole lines only; nothing if there is no log. Raises OSError."""
    try:
        with opened(path) as file:
            return _tail(file.fileno(), size).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _tail(descriptor: int, size: int) -> bytes:
    end = os.fstat(descriptor).st_size
    start = max(0, end - size)
    raw = os.pread(descriptor, end - start, start)
    return raw.partition(b"\n")[2] if start else raw


class Following:
    """The lines appended to a log, from shortly before now on: each call of `lines` returns the new ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = max(0, self._size() - KEPT)
        self._rest = b""

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def lines(self) -> list[str]:
        """Return the lines since the last call. An incomplete line is returned by the next call."""
        size = self._size()
        if size < self._at:  # cut meanwhile
            self._at, self._rest = 0, b""
        if size == self._at:
            return []
        with opened(self._path) as file:
            raw = os.pread(file.fileno(), size - self._at, self._at)
        self._at += len(raw)
        *lines, self._rest = (self._rest + raw).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


def cut(path: Path) -> bool:
    """Cut a log that has become too long; return whether it was cut. Nobody may read it meanwhile. Raises OSError.

    What is appended between reading its end and cutting it is lost, so call this only while nothing is observed.
    """
    try:
        if path.stat().st_size <= LONGEST:
            return False
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        kept = _tail(descriptor, KEPT)
        os.ftruncate(descriptor, 0)
        while kept:
            kept = kept[os.write(descriptor, kept) :]
    finally:
        os.close(descriptor)
    return True


def bound(pods: Iterable[Path]) -> None:
    """Cut every log in the folders of pods that has become too long. Raises OSError."""
    for folder in pods:
        for name in NAMES:
            cut(folder / name)


def require_room(run: Path) -> None:
    """Raise LabError if the lab's file system is full: then records could not be written."""
    told = os.statvfs(run)
    if told.f_bavail * told.f_frsize < _NEEDED:
        raise LabError(
            f"{run} is full: {told.f_bavail * told.f_frsize >> 10} of {told.f_blocks * told.f_frsize >> 10} KiB are"
            " left, so no log can be written",
            hint=f"du -ax {run} | sort -n | tail",
            id="machine.full",
        )
    if told.f_files and not told.f_favail:
        raise LabError(
            f"{run} is full: it can hold no more files",
            hint=f"du -ax --inodes {run} | sort -n | tail",
            id="machine.full",
        )
