"""Properties that a thread can have of its own, and that the threads of one process normally share.

In the kernel, namespaces, root directory, user, capabilities, system call filters and a debugger belong to a thread:
/proc/PID shows only those of the first one.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The subjects of lines in /proc/PID/task/TID/status; see proc_pid_status(5).
_STATUS = {
    "Uid": "runs as another user",
    "Gid": "runs as another group",
    "Groups": "has other groups",
    "CapEff": "has other capabilities",
    "CapPrm": "has other capabilities",
    "Seccomp": "has another filter of system calls",
    "Seccomp_filters": "has another filter of system calls",
    "TracerPid": "has a debugger attached to it alone",
}
_NAMESPACES = {"net": "network", "mnt": "mount", "user": "user", "pid": "PID"}


def differing(pid: int) -> str:
    """Describe how a thread of a process differs from its first one; "" if none does, or it ends. Raises OSError."""
    try:
        first = _of(pid, pid)
        for thread in sorted(int(each.name) for each in Path("/proc", str(pid), "task").iterdir()):
            # It may have been created or ended between the two reads; one that ends does not count.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if thread != pid and (told := next(_unlike(first, _of(pid, thread)), "")):
                    return f"its thread {thread} {told}"
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return ""


def _of(pid: int, thread: int) -> dict[str, str]:
    task = Path("/proc", str(pid), "task", str(thread))
    found = {
        name: value
        for name, _, value in (line.partition(":") for line in lines_of((task / "status").read_text()))
        if name in _STATUS
    }
    links = {kind: str((task / "ns" / kind).readlink()) for kind in _NAMESPACES}
    return found | links | {"root": str((task / "root").readlink())}


def _unlike(first: dict[str, str], other: dict[str, str]) -> Iterator[str]:
    for name, value in first.items():
        if other.get(name) == value:
            continue
        if name in _NAMESPACES:
            yield f"is in another {_NAMESPACES[name]} namespace"
        elif name == "root":
            yield f"has {other['root']} as its root directory"
        else:
            yield _STATUS[name]
