"""The machine itself: processor, memory, writable places."""

from __future__ import annotations

import errno
import os
import platform
import pwd
import resource
import sys
import tempfile
from typing import TYPE_CHECKING

from merbridge_lab import shortage
from merbridge_lab.adapters import kernel_features, memory_cgroup, own_container
from merbridge_lab.requirements.requirement import FAIL, PASS, WARN, Requirement
from merbridge_lab.text import lines_of, read_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Read, never written to.
_SHARED = "/dev/shm"  # noqa: S108

_MEMORY = 512
#: Measured on a running lab: an Envoy cannot start with 32 and can with 48; three sidecars, control pods and their
#: clients need 65.
_FILES = 64
_PROCESSES = 80
MEMORY_NEEDED = f">= {_MEMORY} MB available"


def ptrace(root: Path) -> Requirement:
    """Check whether root may take a descriptor from another process: this registers a sidecar that already listens."""
    name, needed = "ptrace_scope", f"kernel.yama.ptrace_scope below {kernel_features.NOBODY_TRACES}, or no Yama"
    scope = kernel_features.ptrace_scope(root)
    if scope is None:
        return Requirement(name, PASS, "no Yama", needed)
    if scope < kernel_features.NOBODY_TRACES:
        return Requirement(name, PASS, f"kernel.yama.ptrace_scope is {scope}", needed)
    found = f"kernel.yama.ptrace_scope is {scope}, until the next boot without it"
    return Requirement(name, FAIL, found, needed, kernel_features.FIND_PTRACE_SCOPE)


def sidecars_user(number: int) -> Requirement:
    """Check whether a real user has the number of the sidecars' user: that user could signal and trace them."""
    name, needed = "sidecars_user", f"no user of this machine has the number {number}"
    try:
        taken = pwd.getpwuid(number).pw_name
    except KeyError:
        return Requirement(name, PASS, "nobody has it", needed)
    hint = f"give {taken} another number (usermod -u NUMBER {taken}), or make sure that nobody else logs in as {taken}"
    return Requirement(
        name, WARN, f"{taken} has it, and the kernel takes it for the user of the lab's sidecars", needed, hint
    )


def architecture() -> Requirement:
    """Check the processor: everything was measured on x86_64."""
    return judge_architecture(platform.machine())


def judge_architecture(machine: str) -> Requirement:
    """Assess the output of `uname -m`."""
    name, needed = "machine.architecture", "x86_64 (aarch64: untested)"
    if machine == "x86_64":
        return Requirement(name, PASS, machine, needed)
    if machine == "aarch64":
        return Requirement(name, WARN, machine, needed, "nobody has tested merlab on aarch64: tell us how it went")
    return Requirement(name, FAIL, machine, needed, "use an x86_64 machine")


def memory(root: Path) -> Requirement:
    """Check for enough memory for three sidecars, three apps and the compiler."""
    runtime = own_container.command(root)
    return judge_memory(read_text(root / "proc/meminfo"), memory_cgroup.rooms(root), runtime)


def judge_memory(meminfo: str, rooms: Sequence[tuple[Path, int]] = (), runtime: str = "") -> Requirement:
    """Assess a /proc/meminfo, whose figures are in KiB, and the bytes that files of cgroups leave to this process.

    `runtime` is the command that starts containers like this one.
    """
    figures = {line.split(":")[0]: int(line.split()[1]) for line in lines_of(meminfo) if ":" in line}
    available = figures.get("MemAvailable", figures.get("MemFree", 0)) // 1024
    tightest = min(rooms, key=lambda each: each[1], default=None)
    if tightest is not None and (left := tightest[1] >> 20) < min(available, _MEMORY):
        found = f"{max(left, 0)} MB available by {tightest[0]}"
        hint = f"start this container with: {runtime} run --memory 1g" if runtime else f"cat {tightest[0]}"
        return Requirement("memory", FAIL, found, MEMORY_NEEDED, hint)
    if available >= _MEMORY:
        return Requirement("memory", PASS, f"{available} MB available", MEMORY_NEEDED)
    return Requirement(
        "memory",
        FAIL,
        f"{available} MB available",
        MEMORY_NEEDED,
        "ps aux --sort -rss",
    )


def limits() -> list[Requirement]:
    """Check how many files and processes we may have: the lab's count against the same limits."""
    files = judge_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    return [files, judge_processes(shortage.pids_limits(), own_container.command())]


def judge_files(soft: int, hard: int) -> Requirement:
    """Assess RLIMIT_NOFILE: merlab has the soft limit, a sidecar the hard one."""
    name, needed = "limits.files", f"{_FILES} open files a process"
    most = min(each for each in (soft, hard, sys.maxsize) if each != resource.RLIM_INFINITY)
    if most >= _FILES:
        return Requirement(name, PASS, "any number" if most == sys.maxsize else f"{most} open files a process", needed)
    return Requirement(name, FAIL, f"{most} open files a process", needed, "ulimit -n 4096")


def judge_processes(limits: list[tuple[Path, int, int]], runtime: str = "") -> Requirement:
    """Assess the pids.max of our cgroups: for each its directory, the current number, the maximum number.

    `runtime` is the command that starts containers like this one.
    """
    name, needed = "limits.processes", f"room for {_PROCESSES} processes and threads"
    place, current, most = min(limits, key=lambda each: each[2] - each[1], default=(None, 0, 0))
    if place is None:
        return Requirement(name, PASS, "not limited", needed)
    found = f"{current} of {most} in {place}"
    if most - current >= _PROCESSES:
        return Requirement(name, PASS, found, needed)
    hint = f"start this container with: {runtime} run --pids-limit -1" if runtime else f"echo max > {place}/pids.max"
    return Requirement(name, FAIL, found, needed, hint)


def run_directory(root: Path) -> Requirement:
    """Write to /run, which holds the lab's mounts, sockets and logs."""
    place = root / "run"
    name, needed = "run_directory", "/run can be written"
    try:
        _write_unnamed(place)
    except OSError as error:
        if error.errno == errno.EROFS:
            hint = shortage.writable(place)
        elif error.errno == errno.ENOSPC:
            hint = "df -h /run"
        else:
            hint = "mount -t tmpfs tmpfs /run"
        return Requirement(name, FAIL, f"/run: {error.strerror}", needed, hint)
    return Requirement(name, PASS, "/run can be written", needed)


def _write_unnamed(place: Path) -> None:
    """Write a page to a file that never has a name, so that it is deleted with its descriptor."""
    try:
        descriptor = os.open(place, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOSYS}:
            raise
        # Overlayfs before 6.3 has no nameless files.
        with tempfile.TemporaryFile(dir=place) as named:
            named.write(bytes(4096))
        return
    try:
        os.write(descriptor, bytes(4096))
    finally:
        os.close(descriptor)


def shared_memory(root: Path) -> Requirement:
    """Check for /dev/shm: Envoy aborts at its start if nothing is mounted there."""
    mounts = [line.split(" ")[1] for line in lines_of(read_text(root / "proc/self/mounts"))]
    name, needed = "shared_memory", f"{_SHARED} mounted (Envoy)"
    if _SHARED in mounts:
        return Requirement(name, PASS, f"{_SHARED} mounted", needed)
    return Requirement(
        name,
        FAIL,
        f"nothing is mounted on {_SHARED}",
        needed,
        f"mkdir -p {_SHARED} && mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs {_SHARED}",
    )
