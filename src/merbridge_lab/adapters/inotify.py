"""Be told of directories that appear and vanish (inotify(7)); it works on the file system of cgroups, too."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

_LIBC = ctypes.CDLL(None, use_errno=True)
# <sys/inotify.h>
_CREATE, _DELETE, _MOVED, _DELETE_SELF = 0x100, 0x200, 0x80 | 0x40, 0x400
_ONLYDIR = 0x01000000
_OVERFLOW, _IGNORED, _IS_DIRECTORY = 0x4000, 0x8000, 0x40000000
_EVENT = struct.Struct("=iIII")
_CHUNK = 1 << 16


class Event(NamedTuple):
    """A directory below a watched one that was created, or removed; with `lost`, some events were not kept."""

    path: Path | None
    is_new: bool
    lost: bool = False


class Inotify:
    """Watches directories, each for the directories right in it; `fileno` is for select."""

    def __init__(self) -> None:
        self._descriptor = _LIBC.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._descriptor < 0:
            raise _error("inotify_init1")
        self._watched: dict[int, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are events."""
        return int(self._descriptor)

    @property
    def watched(self) -> set[Path]:
        """Return the directories that are watched."""
        return set(self._watched.values())

    def watch(self, folder: Path) -> None:
        """Watch a directory; again is no harm. Raises OSError."""
        number = _LIBC.inotify_add_watch(
            self._descriptor, os.fsencode(folder), _CREATE | _DELETE | _MOVED | _DELETE_SELF | _ONLYDIR
        )
        if number < 0:
            raise _error(f"inotify_add_watch {folder}")
        self._watched[number] = folder

    def events(self) -> list[Event]:
        """Return what has happened since the last call, without waiting."""
        found: list[Event] = []
        while True:
            try:
                raw = os.read(self._descriptor, _CHUNK)
            except BlockingIOError:
                return found
            at = 0
            while at < len(raw):
                number, mask, _, length = _EVENT.unpack_from(raw, at)
                name = raw[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                at += _EVENT.size + length
                if mask & _OVERFLOW:
                    found.append(Event(None, is_new=False, lost=True))
                elif mask & _IGNORED:
                    self._watched.pop(number, None)
                elif mask & _IS_DIRECTORY and name and number in self._watched:
                    path = self._watched[number] / os.fsdecode(name)
                    found.append(Event(path, is_new=bool(mask & _CREATE)))


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
