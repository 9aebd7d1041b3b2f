"""cgroup v2: find, list, kill and remove; whoever needs one creates it as a directory.

Only the version 2 hierarchy supports BPF programs; its mount point differs between distributions.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from merbridge_lab import shortage
from merbridge_lab.adapters import mounts
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.files import delete_folder
from merbridge_lab.errors import LabError
from merbridge_lab.polling import poll_until
from merbridge_lab.text import lines_of, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Where systemd moves itself, below the cgroup that it was started in.
_SYSTEMD = "init.scope"


def find_root(other_than: Path) -> Path | None:
    """Return the directory where the system has all of cgroup2 mounted, or None.

    Mounts below `other_than` (the lab's own) do not count.
    """
    for mount in mounts.table():
        if mount.fstype == "cgroup2" and mount.root == "/" and not mount.is_within(other_than):
            return mount.target
    return None


def processes(cgroup: Path) -> list[int]:
    """List the processes directly in `cgroup`; none if it does not exist. Raises LabError."""
    try:
        return [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno == errno.ENODEV:  # removed between opening and reading
            return []
        raise shortage.of(error) or LabError(
            f"the processes in {cgroup} cannot be read: {error.strerror}",
            hint=f"cat {cgroup}/cgroup.procs",
            id="reading.failed",
        ) from error


def of(pid: int) -> str:
    """Return the cgroup that a process is in, as a path from the root of the hierarchy; "" if it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return in_version_2(read_text(Path("/proc", str(pid), "cgroup")))
    return ""


def in_version_2(memberships: str) -> str:
    """Return the path in the version 2 hierarchy, from the text of a /proc/PID/cgroup; "" if it names none."""
    return next((line.removeprefix("0::") for line in lines_of(memberships) if line.startswith("0::")), "")


def of_machine(process: Path = Path("/proc/1")) -> PurePath:
    """Return the cgroup below which this machine keeps everything, relative to the root of the hierarchy.

    It is the one of process 1: the root, or in a container that sees the whole hierarchy, the container's own. What is
    made there is gone with the container, and no other container, nor the machine itself, has anything in it. Where
    process 1 is the machine's (docker run --pid host), any other `process` of the container will do.
    """
    try:
        found = PurePath(in_version_2(read_text(process / "cgroup")).lstrip("/"))
    except OSError:  # /proc shows nobody else's processes
        return PurePath()
    if found.name == _SYSTEMD:
        found = found.parent
    # Process 1 may be outside of what our cgroup namespace shows.
    return PurePath() if ".." in found.parts else found


def subtree(cgroup: Path) -> Iterator[Path]:
    """Return `cgroup` and all cgroups below it, the innermost first: the order in which they can be removed."""
    for directory, _names, _files in os.walk(cgroup, topdown=False):
        yield Path(directory)


def all_processes(cgroup: Path) -> list[int]:
    """List the processes in `cgroup` and all below it."""
    return [pid for each in subtree(cgroup) for pid in processes(each)]


def cpu_seconds(cgroup: Path) -> float:
    """Return how long processes in and below `cgroup` have used a processor, in seconds. Raises OSError."""
    fields = dict(line.split() for line in lines_of(read_text(cgroup / "cpu.stat")))
    return int(fields["usage_usec"]) / 1e6


def is_frozen(cgroup: Path) -> bool:
    """Report whether the kernel runs nothing in `cgroup`, because it or one above it is frozen."""
    try:
        return "frozen 1" in (cgroup / "cgroup.events").read_text()
    except OSError:
        return False


#: What limits the processes of a cgroup, and the values that mean no limit. A file exists if its controller is on.
_UNLIMITED = {
    "cgroup.freeze": "0",
    "cpu.max": "max",
    "cpuset.cpus": "",
    "memory.high": "max",
    "memory.max": "max",
    "pids.max": "max",
}


def limits(cgroup: Path) -> list[str]:
    """Describe which limits are set on `cgroup` itself: "FILE is VALUE"."""
    found = []
    for name, free in _UNLIMITED.items():
        with contextlib.suppress(OSError):
            have = (cgroup / name).read_text().strip()
            if (have.split() or [""])[0] != free:
                found.append(f"{name} is {have}")
    return found


@change("take limits off a cgroup")
def release(cgroup: Path) -> None:
    """Remove the limits of `cgroup` and thaw it; succeed if it does not exist. Raises OSError."""
    for limited in limits(cgroup):
        name = limited.partition(" ")[0]
        (cgroup / name).write_text(f"{_UNLIMITED[name]}\n")


@change("kill a cgroup")
def kill(cgroup: Path) -> None:
    """Send SIGKILL to every process in and below `cgroup`.

    Use cgroup.kill (Linux 5.14), which no fork escapes; on older kernels kill one by one.
    """
    try:
        (cgroup / "cgroup.kill").write_text("1")
    except OSError:
        for pid in all_processes(cgroup):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def clear(cgroup: Path, timeout: float) -> None:
    """Kill what is in and below `cgroup` and wait until it is empty, at most `timeout` seconds.

    Raise LabError naming what did not end.
    """

    def is_empty() -> bool:
        if not all_processes(cgroup):
            return True
        kill(cgroup)
        return False

    if not poll_until(is_empty, timeout=timeout, awaiting=f"the processes in {cgroup} to end"):
        left = ", ".join(str(pid) for pid in all_processes(cgroup))
        raise LabError(
            f"processes in {cgroup} did not end within {timeout:g} s: {left}",
            hint=f"ps -o pid,stat,wchan,args {left}",
            id="removal.failed",
        )


def uncover(cgroup: Path) -> None:
    """Unmount what covers files in and below `cgroup`: such files cannot be read. Raises OSError."""
    for mount in mounts.below(cgroup):
        mounts.umount(mount.target)


def remove(cgroup: Path, timeout: float) -> None:
    """Kill what is in and below `cgroup` and remove all of it; succeed if nothing is there.

    Raise LabError if it cannot be emptied or removed within `timeout` seconds.
    """

    def is_gone() -> bool:
        clear(cgroup, timeout)
        # Busy until the last exiting task has left, which is after it is no longer listed.
        with contextlib.suppress(OSError):
            for each in subtree(cgroup):
                delete_folder(each)
        return not cgroup.exists()

    uncover(cgroup)
    if cgroup.exists() and not poll_until(is_gone, timeout=timeout, awaiting=f"the cgroup {cgroup} to be gone"):
        raise LabError(
            f"the cgroup {cgroup} could not be removed within {timeout:g} s",
            hint=f"rmdir {cgroup}",
            id="removal.failed",
        )
