"""The kernel settings that belong to a network namespace: everything below /proc/sys/net, read at once.

The namespace of a path below /proc/sys/net is that of the thread that opens it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters.netns import run_in_new
from merbridge_lab.errors import ShortageError
from merbridge_lab.evidence import Unread, UnreadError
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TOP = "/proc/sys/net"
_MODIFIED, _NON_BLOCKING, _EVENT = 0x2, 0o2004000, struct.Struct("=iIII")
_ROOM = 1 << 16
_libc = ctypes.CDLL(None, use_errno=True)


def read_all() -> dict[str, str]:
    """Read every setting of the calling thread's network namespace: path below /proc/sys/net → value.

    For a file that returns nothing (it is write-only, or was never set) the value is the name of the error. Raise
    UnreadError if something is mounted over one of them: what is read there is not the kernel's.
    """
    if (covered := _covered(Path("/proc/self/mountinfo").read_text(errors="replace"))) is not None:
        raise UnreadError(Unread(f"sysctl:{TOP}", f"something is mounted over {covered}"))
    found: dict[str, str] = {}
    # Some hundred files, some ten times in a `verify`: so this avoids slow conveniences.
    for folder, _, names in os.walk(TOP):
        below = folder[len(TOP) + 1 :]
        for name in names:
            try:
                file = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # of a link that has just gone
                continue
            except OSError as error:
                value = _called(error)
            else:
                try:
                    value = " ".join(os.read(file, _ROOM).decode(errors="replace").split())
                except OSError as error:
                    value = _called(error)
                finally:
                    os.close(file)
            found[f"{below}/{name}"] = value
    return found


def read(names: Iterable[str]) -> dict[str, str]:
    """Read these settings of the calling thread's network namespace; skip those that this kernel lacks."""
    found = {}
    for name in names:
        try:
            file = os.open(f"{TOP}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            found[name] = " ".join(os.read(file, _ROOM).decode(errors="replace").split())
        finally:
            os.close(file)
    return found


class Writes:
    """Writes to settings, reported by inotify, if they go through the /proc that merlab sees.

    Raises OSError; ShortageError if this user may have no more inotify instances or watches.
    """

    def __init__(self) -> None:
        try:
            self._fd = _inotify("inotify_init1", _NON_BLOCKING)
        except OSError as error:
            # The kernel returns the same error if the process may open no more files.
            if error.errno == errno.EMFILE and _may_open():
                raise _used_up("instance") from error
            raise
        self._folders: dict[int, tuple[str, str]] = {}

    def add(self, name: str, folders: Iterable[str]) -> None:
        """Listen from now on for writes to settings in `folders` of the calling thread's network namespace, `name`."""
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                try:
                    number = _inotify("inotify_add_watch", self._fd, f"{TOP}/{folder}".encode(), _MODIFIED)
                except OSError as error:
                    if error.errno == errno.ENOSPC:
                        raise _used_up("watch") from error
                    raise
                self._folders[number] = name, folder

    def seen(self) -> list[tuple[str, str]]:
        """Return what was written since the last call: in which namespace, and which setting."""
        found: dict[tuple[str, str], None] = {}
        with contextlib.suppress(BlockingIOError):
            while raw := os.read(self._fd, _ROOM):
                at = 0
                while at < len(raw):
                    number, _, _, length = _EVENT.unpack_from(raw, at)
                    name, folder = self._folders.get(number, ("", ""))
                    setting = raw[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0").decode(errors="replace")
                    # Without a number, the kernel reports that its queue overflowed.
                    found[
                        name,
                        f"{folder}/{setting}" if folder else "more settings were written than the kernel could report",
                    ] = None
                    at += _EVENT.size + length
        return [*found]

    def close(self) -> None:
        """Stop listening."""
        os.close(self._fd)


def _may_open() -> bool:
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _used_up(what: str) -> ShortageError:
    limit = f"fs.inotify.max_user_{what}{'es' if what == 'watch' else 's'}"
    return ShortageError(f"this user may create no further inotify {what}: see {limit}", hint=f"sysctl {limit}")


def _inotify(name: str, *args: int | bytes) -> int:
    result: int = getattr(_libc, name)(*args)
    if result < 0:
        code = ctypes.get_errno()
        if code == errno.ENOENT:
            raise FileNotFoundError(code, os.strerror(code))
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _called(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "unknown")


def _covered(mountinfo: str) -> str | None:
    """Find what is mounted over settings, except the same mount bound again, as containers do."""
    for line in lines_of(mountinfo):
        if " /proc/sys" in line:
            root, target = line.split()[3:5]
            kind = line.partition(" - ")[2].partition(" ")[0]
            if (target == "/proc/sys" or f"{target}/".startswith(f"{TOP}/")) and (kind, f"/proc{root}") != (
                "proc",
                target,
            ):
                return target
    return None


@functools.lru_cache(maxsize=1)
def of_new_namespace() -> Mapping[str, str]:
    """Return the settings of a temporary network namespace: the kernel's defaults, and what the host passes on.

    Cached, because it costs some milliseconds. `of_new_namespace.cache_clear()` makes it read again. Raises OSError,
    UnreadError.
    """
    return run_in_new(read_all)
