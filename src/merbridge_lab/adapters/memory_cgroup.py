"""The memory that this process may still use by its cgroups: a container's can be far below that of the machine."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterator

#: By version of the hierarchy: what limits, what is in use, and what of it the kernel gives back when it needs to.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
#: Version 1 has no word for "no limit", but a number beyond any machine's memory.
_NONE = 1 << 60


def rooms(root: Path = Path("/")) -> list[tuple[Path, int]]:
    """Return the files that limit the memory of this process, from its own cgroup up, and the bytes left by each."""
    groups = root / "sys/fs/cgroup"
    found: list[tuple[Path, int]] = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_bytes().split(b"\n"):
            _, controllers, path = os.fsdecode(line).split(":", 2) if line.count(b":") > 1 else ("", "-", "")
            if not controllers:
                places = [(groups, 2), (groups / "unified", 2)]
            else:
                places = [(groups / "memory", 1)] if "memory" in controllers.split(",") else []
            for place, version in places:
                found += _up(place, place / path.lstrip("/"), version)
    return found


def _up(root: Path, place: Path, version: int) -> Iterator[tuple[Path, int]]:
    # Where a container sees the names of the whole hierarchy and the files of its own cgroup alone, those are the root.
    limit, used, spare = _FILES[version]
    for each in (place, *place.parents):
        if each == root.parent:
            return
        with contextlib.suppress(OSError, ValueError, KeyError):
            most = int((each / limit).read_text())  # "max" is no number
            if most < _NONE:
                counted = dict(line.split() for line in lines_of((each / "memory.stat").read_text()))
                yield each / limit, most - int((each / used).read_text()) + int(counted[spare])
