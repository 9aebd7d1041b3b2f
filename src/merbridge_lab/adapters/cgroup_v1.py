"""What the version 1 hierarchies of cgroups, where a machine still has them, do to a process.

merlab puts nothing there: a process of the lab is where the command was that started it, unless somebody moved it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.text import lines_of, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator


def frozen(pid: int) -> str:
    """Say where the process `pid` is frozen; empty if it is not. Raises OSError."""
    return next((f"freezer.state of {place}" for place in _places(pid, "freezer") if _is_frozen(place)), "")


def _is_frozen(place: Path) -> bool:
    return _read(place / "freezer.state") in ("FROZEN", "FREEZING")


def throttled(pid: int) -> str:
    """Say what share of the processors the process `pid` has at most; empty if nothing limits it. Raises OSError."""
    for place in _places(pid, "cpu"):
        if (quota := _read(place / "cpu.cfs_quota_us")).isdigit():
            return f"cpu.cfs_quota_us of {place} is {quota}, of {_read(place / 'cpu.cfs_period_us')}"
    return ""


def _places(pid: int, controller: str) -> Iterator[Path]:
    """Return the directories of the cgroup of `pid` with a controller of version 1; none where that has none."""
    for line in lines_of(_read(Path("/proc", str(pid), "cgroup"))):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller not in controllers.split(",") or path == "/":
            continue  # in the root nothing is limited, and it has no such file
        # Unlike mountinfo's, a line here ends with all options, the file system's own as well.
        for _source, target, fstype, options, *_ in map(str.split, lines_of(_read(Path("/proc/self/mounts")))):
            if fstype == "cgroup" and controller in options.split(","):
                yield Path(target, path.lstrip("/"))
                break


def _read(path: Path) -> str:
    """Read a file, "" where there is none: the process has ended, or is not in this hierarchy. Raises OSError."""
    try:
        return read_text(path).strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
