"""The settings of the kernel that a network namespace has of its own: all below /proc/sys/net, read at once.

Which namespace's value a path below /proc/sys/net means depends on the thread that opens it.
"""

from __future__ import annotations

import errno
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters.netns import run_in_new

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TOP = Path("/proc/sys/net")
_ROOM = 1 << 16


def read_all() -> dict[str, str]:
    """Read every setting of the calling thread's network namespace: path below /proc/sys/net → value.

    Of a file that tells nothing (it is only for writing, or was never set) the value is the name of the error. Raises
    OSError where something is mounted over one of them: what is read there is not the kernel's.
    """
    return dict(_below(TOP, Path("/proc/self").stat().st_dev))


def _below(folder: Path, device: int) -> Iterator[tuple[str, str]]:
    try:
        _refuse_cover(folder.stat(), device, folder)
        entries = list(os.scandir(folder))
    except FileNotFoundError:  # of a link that has just gone
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _below(folder / entry.name, device)
        elif (value := _value(entry.path, device)) is not None:
            yield entry.path[len(str(TOP)) + 1 :], value


def _value(path: str, device: int) -> str | None:
    """Read one; None where it has just gone."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "unknown")
    try:
        _refuse_cover(os.fstat(file), device, path)
        return _read(file)
    finally:
        os.close(file)


def _read(file: int) -> str:
    try:
        return " ".join(os.read(file, _ROOM).decode(errors="replace").split())
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "unknown")


def _refuse_cover(seen: os.stat_result, device: int, path: object) -> None:
    if seen.st_dev != device:
        raise OSError(errno.EBUSY, f"something is mounted over {path}")


@functools.lru_cache(maxsize=1)
def of_new_namespace() -> Mapping[str, str]:
    """Give the settings of a network namespace made for the moment: the kernel's own, and what the host hands on.

    Kept: it costs some milliseconds. `of_new_namespace.cache_clear()` has it read again. Raises OSError.
    """
    return run_in_new(read_all)
