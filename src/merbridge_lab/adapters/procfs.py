"""What a process really is, from /proc."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters.change import change
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

from merbridge_lab import text


@dataclass(frozen=True)
class Process:
    """A process at one moment.

    `state` is the letter of proc_pid_stat(5), `started` its start in clock ticks after boot, `netns` and `mntns`
    inodes.
    """

    pid: int
    state: str
    started: int
    argv: tuple[str, ...]
    netns: int
    mntns: int

    @property
    def is_stopped(self) -> bool:
        """Report whether a signal or a debugger holds it."""
        return self.state in "Tt"

    @property
    def command(self) -> str:
        """Return its command line, for a message."""
        return " ".join(self.argv) or f"process {self.pid}"

    def runs(self, binary: Path) -> bool:
        """Report whether it executes `binary`, whatever path it sees that file at."""
        try:
            return Path(f"/proc/{self.pid}/exe").samefile(binary)
        except OSError:
            return False

    def sockets(self) -> set[int]:
        """Return the inodes of the sockets it has open."""
        found = set()
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    kind, _, inode = str(descriptor.readlink()).partition(":")
                    if kind == "socket":
                        found.add(int(inode.strip("[]")))
        return found

    def has_open(self, file: Path) -> bool:
        """Report whether one of its descriptors is `file`, whatever path it sees that file at."""
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


#: Where stat_fields has the start of a process, in clock ticks after boot.
_STARTED = 19


def stat_fields(stat: str) -> list[str]:
    """Return the fields of a line of /proc/PID/stat (proc_pid_stat(5)), from the state on."""
    # The name may contain blanks and brackets; what follows the last bracket does not.
    return stat.rpartition(")")[2].split()


def started(stat: str) -> int:
    """Return when a process started, from its line of /proc/PID/stat: this and its PID identify it until a reboot."""
    return int(stat_fields(stat)[_STARTED])


def look(pid: int) -> Process | None:
    """Return the process `pid`, or None if it is gone, a zombie, or hidden (see is_hidden)."""
    proc = Path("/proc", str(pid))
    try:
        stat = text.read_text(proc / "stat")
        if not _is_of(stat, pid):
            return None
        fields = stat_fields(stat)
        argv = tuple((proc / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0"))
        netns, mntns = ((proc / "ns" / kind).stat().st_ino for kind in ("net", "mnt"))
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError, PermissionError):
        return None
    if fields[0] in "ZX":
        return None
    return Process(pid, fields[0], int(fields[_STARTED]), argv, netns, mntns)


def by_argv(argv: Sequence[str], netns: int) -> list[Process]:
    """List the processes that show this command line and are in the network namespace with the inode `netns`."""
    wanted = b"".join(os.fsencode(word) + b"\0" for word in argv)
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError), place.open("rb") as file:
            if file.read() != wanted or (place.parent / "ns/net").stat().st_ino != netns:
                continue
            if (seen := look(int(place.parent.name))) is not None:
                found.append(seen)
    return found


@change("kill a process")
def end(seen: Process) -> None:
    """Send SIGKILL to a process, and to no other that has got its number meanwhile. Succeed if it is gone."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(seen.pid)
        try:
            now = look(seen.pid)
            if now is not None and now.started == seen.started:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def _is_of(stat: str, pid: int) -> bool:
    return stat.startswith(f"{pid} (")


def has_another_root(pid: int) -> bool:
    """Report whether the root directory of a process is not ours, as in a container, or may not be looked at.

    A cgroup lists as 0 a process of a PID namespace that we cannot see.
    """
    try:
        found, own = Path("/proc", str(pid), "root").stat(), Path("/").stat()
    except OSError as error:
        return pid == 0 or isinstance(error, PermissionError)
    return (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino)


def is_hidden(pid: int) -> bool:
    """Report whether the process `pid` runs but /proc does not show it: it is covered there, or hidepid hides it.

    The kernel is asked in another way than through /proc. A cgroup lists as 0 a process of a PID namespace that we
    cannot see.
    """
    if pid == 0:
        return True
    try:
        with (Path("/proc", str(pid)) / "stat").open(errors="replace") as file:
            if _is_of(file.read(), pid):
                # Only a part is hidden, then: what every process has is missing, or may not be read.
                return look(pid) is None and _runs(pid)
    except OSError:
        pass
    return _runs(pid)


def _runs(pid: int) -> bool:
    """Report whether there is such a process, and it has not ended yet."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)  # as soon as it has ended, also while it is a zombie
        return not waiting.poll(0)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Details:
    """Properties that tell one process from another that claims to be the same.

    `users` and `groups` hold the real, effective, saved and file system's; `more_groups` the supplementary ones.
    `program` is device and inode of the executable, `code` the paths of other files with executed code. `limits` are
    soft limits by the kernel's names, None if there is none. `threads` holds a letter for each. `filters` counts its
    seccomp filters, or is 1 if the kernel (before 5.9) reports only that there are some.
    """

    users: tuple[int, ...]
    groups: tuple[int, ...]
    more_groups: frozenset[int]
    tracer: int
    capabilities: int
    root: str
    environment: frozenset[str]
    namespaces: Mapping[str, int]
    program: tuple[int, int]
    code: frozenset[str]
    limits: Mapping[str, int | None]
    threads: str
    filters: int = 0


#: Namespaces that define who a process is and which process a number means; network and mount namespaces are Process's.
_NAMESPACES = ("pid", "user")


def details(pid: int) -> Details | None:
    """Read the details of the process `pid`; None if it is gone. Raise OSError if they cannot be read."""
    proc = Path("/proc", str(pid))
    try:
        status = dict(line.split(":", 1) for line in lines_of((proc / "status").read_text()) if ":" in line)
        program = (proc / "exe").stat()
        return Details(
            users=tuple(map(int, status["Uid"].split())),
            groups=tuple(map(int, status["Gid"].split())),
            more_groups=frozenset(map(int, status["Groups"].split())),
            tracer=int(status["TracerPid"]),
            capabilities=int(status["CapEff"], 16),
            root=str((proc / "root").readlink()),
            environment=frozenset(filter(None, (proc / "environ").read_bytes().decode(errors="replace").split("\0"))),
            namespaces={kind: (proc / "ns" / kind).stat().st_ino for kind in _NAMESPACES},
            program=(program.st_dev, program.st_ino),
            code=_code((proc / "maps").read_text(errors="replace"), str((proc / "exe").readlink())),
            limits=_limits((proc / "limits").read_text()),
            threads=threads(pid),
            filters=_filters(status),
        )
    except (FileNotFoundError, ProcessLookupError):
        if _runs(pid):
            raise  # it exists, and a part of what /proc has of every process is missing
        return None


def own_filters() -> int:
    """Count the seccomp filters of this process, which the processes that it starts inherit."""
    return _filters(dict(line.split(":", 1) for line in lines_of(Path("/proc/self/status").read_text())))


def _filters(status: Mapping[str, str]) -> int:
    return int(status.get("Seccomp_filters") or int(status.get("Seccomp", "0")) == 2)  # noqa: PLR2004 - by filter


def supervisors() -> list[int]:
    """List the processes that may answer system calls of others (SECCOMP_RET_USER_NOTIF, Linux 5.0)."""
    found = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(descriptor.readlink()).startswith("anon_inode:seccomp notify"):
                found.add(int(descriptor.parts[2]))
    return sorted(found)


def own_namespaces() -> Mapping[str, int]:
    """Return the namespaces that Details reports, of this process."""
    return {kind: Path("/proc/self/ns", kind).stat().st_ino for kind in _NAMESPACES}


def _code(maps: str, program: str) -> frozenset[str]:
    found = set()
    for line in lines_of(maps):
        fields = line.split(None, 5)
        if len(fields) == 6 and "x" in fields[1] and fields[4] != "0" and fields[5] != program:  # noqa: PLR2004
            found.add(fields[5].removesuffix(" (deleted)"))
    return frozenset(found)


def _limits(text: str) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for line in lines_of(text)[1:]:
        # Names contain blanks; columns are at least two blanks apart.
        name, soft = line[:26].strip(), line[26:].split()[0]
        found[name] = None if soft == "unlimited" else int(soft)
    return found


def threads(pid: int) -> str:
    """Return the state of each thread, a letter (proc_pid_stat(5)) for each; "" if the process is gone."""
    letters = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                letters.append(stat_fields(text.read_text(task / "stat"))[0])
    return "".join(letters)
