"""What the version 1 hierarchies of cgroups, if a machine still has them, do to a process.

merlab puts nothing there: a process of the lab stays where the command that started it was, unless somebody moved it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.text import lines_of, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator


def frozen(pid: int) -> str:
    """Describe where the process `pid` is frozen; "" if it is not. Raises OSError."""
    return next((f"freezer.state of {place}" for place in _places(pid, "freezer") if _is_frozen(place)), "")


def _is_frozen(place: Path) -> bool:
    return _read(place / "freezer.state") in ("FROZEN", "FREEZING")


def throttled(pid: int) -> str:
    """Describe the largest share of the processors that process `pid` gets; "" if nothing limits it. Raises OSError."""
    for place in _places(pid, "cpu"):
        if (quota := _read(place / "cpu.cfs_quota_us")).isdigit():
            return f"cpu.cfs_quota_us of {place} is {quota}, of {_read(place / 'cpu.cfs_period_us')}"
    return ""


def _places(pid: int, controller: str) -> Iterator[Path]:
    """Return the directories of the cgroup of `pid` with a controller of version 1; none if it has none."""
    for line in lines_of(_read(Path("/proc", str(pid), "cgroup"))):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller not in controllers.split(",") or path == "/":
            continue  # the root has no limits, and no such file
        # Unlike in mountinfo, a line here ends with all options, including the file system's own.
        for _source, target, fstype, options, *_ in map(str.split, lines_of(_read(Path("/proc/self/mounts")))):
            if fstype == "cgroup" and controller in options.split(","):
                yield Path(target, path.lstrip("/"))
                break


def _read(path: Path) -> str:
    """Read a file, "" if there is none: the process has ended, or is not in this hierarchy. Raises OSError."""
    try:
        return read_text(path).strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
