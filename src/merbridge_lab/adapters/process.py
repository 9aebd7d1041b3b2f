"""What a process really is, from /proc."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from merbridge_lab import text


@dataclass(frozen=True)
class Process:
    """A process at one moment.

    `state` is the letter of proc_pid_stat(5), `started` its age in clock ticks since boot, `netns` and `mntns` inodes.
    """

    pid: int
    state: str
    started: int
    argv: tuple[str, ...]
    netns: int
    mntns: int

    @property
    def is_stopped(self) -> bool:
        """Whether a signal or a debugger holds it."""
        return self.state in "Tt"

    @property
    def command(self) -> str:
        """Its command line, for a message."""
        return " ".join(self.argv) or f"process {self.pid}"

    def runs(self, binary: Path) -> bool:
        """Whether it executes `binary`, wherever it sees that file."""
        try:
            return Path(f"/proc/{self.pid}/exe").samefile(binary)
        except OSError:
            return False

    def sockets(self) -> set[int]:
        """Give the inodes of the sockets it has open."""
        found = set()
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    kind, _, inode = str(descriptor.readlink()).partition(":")
                    if kind == "socket":
                        found.add(int(inode.strip("[]")))
        return found

    def has_open(self, file: Path) -> bool:
        """Whether one of its descriptors is `file`, wherever it sees that file."""
        try:
            wanted = file.stat()
            descriptors = list(Path(f"/proc/{self.pid}/fd").iterdir())
        except OSError:
            return False
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                found = descriptor.stat()
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
        return False


def look(pid: int) -> Process | None:
    """Give the process `pid`, or None if it is gone or only a zombie of it is left."""
    proc = Path("/proc", str(pid))
    try:
        # The name may hold blanks and brackets; what follows the last bracket does not.
        fields = text.read_text(proc / "stat").rpartition(")")[2].split()
        argv = tuple((proc / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0"))
        netns, mntns = ((proc / "ns" / kind).stat().st_ino for kind in ("net", "mnt"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in "ZX":
        return None
    return Process(pid, fields[0], int(fields[19]), argv, netns, mntns)
