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
    """Find the holder in /proc/locks, whose lines end in "FLOCK ADVISORY WRITE pid major:minor:inode 0 EOF"."""
    inode = str(os.fstat(fd).st_ino)
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "->" not in fields and fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
                return f": PID {fields[4]}"
    return ""
