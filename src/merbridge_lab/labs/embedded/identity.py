"""Is a process the one that merlab started? Several things must agree, and no name is believed.

Compared are: the command line, the network and mount namespace (those of the pod) and those of PIDs and users
(merlab's own), the root directory, the file that is executed (device and inode; of Envoy the bytes), user, group and
further groups, the capabilities (none), the environment (exactly the one that merlab gives), that no debugger is
attached, that code was loaded from the system's directories alone, that the limits leave room to work, that command
line and environment are where exec put them and as long, that all threads are like the first one, and the script: that
the file holds what merlab put there, and was not written after the process had started, which is when it was read. Not
compared: a seccomp filter that nobody answers, which can only take away, and what was put into the memory of the
process itself. So a Python that runs another script, by a command line that is as long to the byte, and writes the
right one over it, passes; it can be no program but that Python, as that user, in that pod, and what it answers is not
what the proof rests on: rules, maps, sockets and sidecars are asked themselves.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import process_arguments, procfs, threads
from merbridge_lab.adapters.files import has_content
from merbridge_lab.labs.embedded.namespaces import ENVIRONMENT, PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from merbridge_lab.adapters.procfs import Details, Process

#: USER_HZ, of which /proc/PID/stat counts; the same on every architecture.
TICKS = 100
#: A start is told in ticks, rounded down, and the time of a file by a coarse clock.
_ROUNDING = 0.02
#: Where a distribution has its libraries.
_LIBRARIES = ("/usr/", "/lib/", "/lib64/", "/lib32/")
#: Below this, a sidecar runs out of descriptors; requirements.host looks for as many.
_FILES = 64


@dataclass(frozen=True)
class Expected:
    """What a process of a pod must be. `script` is the file that it interprets, with its text.

    `program` is the file itself, or a sentence about what is wrong with the file that is executed, or empty.
    """

    argv: Sequence[str]
    program: Path | Callable[[Path], str]
    user: int
    netns: int
    mntns: int
    script: tuple[Path, str] | None = None


def mismatch(seen: Process, expected: Expected) -> str:
    """Say in a few words what is wrong with a process that should be the expected one; empty if nothing is."""
    if tuple(expected.argv) != seen.argv:
        return "it has another command line"
    if seen.netns != expected.netns:
        return "in another network namespace"
    if seen.mntns != expected.mntns:
        return "in another mount namespace"
    try:
        found = procfs.details(seen.pid)
    except OSError as error:
        return f"it could not be looked at: {error.strerror}"
    if found is None:
        return "it ended while it was looked at"
    return next((reason for reason in _mismatches(seen, found, expected) if reason), "")


def _mismatches(seen: Process, found: Details, expected: Expected) -> Iterator[str]:
    yield _of_program(seen, found, expected.program)
    if set(found.users) != {expected.user}:
        yield f"it runs as user {found.users[1]}, not {expected.user}"
    if set(found.groups) != {expected.user} or found.more_groups - {expected.user}:
        yield f"it runs with other groups than {expected.user}"
    if found.capabilities:
        yield f"it has capabilities ({found.capabilities:#x})"
    own = procfs.own_namespaces()
    yield from (f"in another {kind} namespace" for kind, number in found.namespaces.items() if number != own[kind])
    if found.root != "/":
        yield f"its root directory is {found.root}"
    if more := sorted(found.environment ^ ENVIRONMENT):
        yield f"its environment is not merlab's: {more[0].partition('=')[0]}"
    if found.tracer:
        yield f"process {found.tracer} is attached to it as a debugger"
    # A filter alone can only take away; but one that asks a supervisor has that answer in the kernel's place.
    if found.filters > procfs.own_filters() and (others := procfs.supervisors()):
        yield f"it has a seccomp filter, and process {others[0]} may answer its system calls"
    if strange := sorted(path for path in found.code if not path.startswith(_LIBRARIES)):
        yield f"it has loaded code of {strange[0]}"
    yield _of_limits(found)
    # Before /proc/PID/cmdline is believed any further: whose memory that is.
    start = str(program(expected.argv[0], PATH))
    yield process_arguments.differing(seen.pid, start, expected.argv, ENVIRONMENT)
    yield threads.differing(seen.pid)
    if expected.script is not None:
        yield _of_script(seen, *expected.script)


def _of_program(seen: Process, found: Details, program: Path | Callable[[Path], str]) -> str:
    if not isinstance(program, Path):
        # Asked of what runs, wherever its file may be by now.
        return program(Path(f"/proc/{seen.pid}/exe"))
    try:
        wanted = program.stat()
    except OSError as error:
        return f"{program} could not be looked at: {error.strerror}"
    if found.program != (wanted.st_dev, wanted.st_ino):
        return f"it does not run {program}, or that was replaced"
    return ""


def _of_limits(found: Details) -> str:
    files = found.limits.get("Max open files")
    if files is not None and files < _FILES:
        return f"it may have only {files} files open"
    for name in ("Max file size", "Max cpu time", "Max address space"):
        if (limit := found.limits.get(name)) is not None:
            return f"its {name.lower().removeprefix('max ')} is limited to {limit}"
    return ""


def _of_script(seen: Process, path: Path, text: str) -> str:
    try:
        mine, its = path.stat(), Path(f"/proc/{seen.pid}/root{path}").stat()
    except OSError as error:
        return f"{path} could not be looked at: {error.strerror}"
    if (mine.st_dev, mine.st_ino) != (its.st_dev, its.st_ino):
        return f"it sees another {path.name} than merlab's"
    if not has_content(path, text):
        return f"{path} is not what merlab put there"
    if mine.st_ctime > started(seen) + _ROUNDING:
        return f"{path} was written after it had started (or the clock was set back)"
    return ""


def started(seen: Process) -> float:
    """Return the moment at which a process started, as the files' times count."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + seen.started / TICKS


def program(name: str, path: str) -> Path:
    """Find a program as the pods do: by `path`. What is not there is named as it would be asked for."""
    for folder in path.split(os.pathsep):
        found = Path(folder, name)
        if found.is_file() and os.access(found, os.X_OK):
            return found
    return Path(name)
