"""Only one merlab changes the lab at a time.

The lock is a BSD lock on the directory that holds the run directory: it leaves no file behind, goes with the
process that holds it, and is found whichever network namespace one calls from.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.errors import LabError
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterator

WHERE = Path("/run")


@contextlib.contextmanager
def held(where: Path = WHERE) -> Iterator[None]:
    """Hold the lock for the length of the block; raises LabError naming the process that has it."""
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(
                f"another merlab is at work{_holder(fd)}", hint="wait for it to end, then type this again"
            ) from None
        yield
    finally:
        os.close(fd)


def _holder(fd: int) -> str:
    found = os.fstat(fd)
    with contextlib.suppress(OSError):
        return read_holder(Path("/proc/locks").read_text(), found.st_dev, found.st_ino)
    return ""


def read_holder(locks: str, device: int, inode: int) -> str:
    """Find the holder in /proc/locks, whose lines end in "FLOCK ADVISORY WRITE pid major:minor:inode 0 EOF".

    The root of every tmpfs has the same inode. Some file systems (btrfs, overlayfs) tell another device than the
    kernel's: where none is the same, it is a holder if there is but one.
    """
    rows = [fields for line in lines_of(locks) if "->" not in (fields := line.split()) and fields[1] == "FLOCK"]
    alike = [fields for fields in rows if fields[5].endswith(f":{inode}")]
    exact = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    same = [fields for fields in alike if fields[5] == exact] or (alike if len(alike) == 1 else [])
    return f": PID {same[0][4]}" if same else ""
