"""Check that a process is the one that merlab started. Several facts must agree; a name proves nothing.

Compared are: the command line; the network and mount namespace (those of the pod) and those of PIDs and users (merlab's
own); the root directory; the executed file (device and inode; for Envoy the bytes); user, group and supplementary
groups; the capabilities (none); the environment (exactly the one that merlab sets). No debugger may be attached. Code
must be loaded only from the system's directories. The limits must be high enough. Command line and environment must be
where exec put them, with the same length. All threads must be like the first one. The script file must hold what merlab
put there, and must not be written after the process started, which is when it was read.

Not compared: a seccomp filter without a supervisor, which can only restrict; and the memory of the process. So this
passes: a Python that runs another script, with a command line of the same length in bytes, and overwrites it with the
right one. It can be no program but that Python, as that user, in that pod. The proof does not rest on its answers:
rules, maps, sockets and sidecars are read directly.
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

#: USER_HZ, the unit of /proc/PID/stat; the same on every architecture.
TICKS = 100
#: A start is given in ticks, rounded down, and the time of a file by a coarse clock.
_ROUNDING = 0.02
#: Where distributions put their libraries.
_LIBRARIES = ("/usr/", "/lib/", "/lib64/", "/lib32/")
#: Below this, a sidecar runs out of descriptors; requirements.host checks for the same number.
_FILES = 64


@dataclass(frozen=True)
class Expected:
    """What a process of a pod must be. `script` is the file that it interprets, with its text.

    `program` is the file itself, or a sentence about what is wrong with the executed file, or empty.
    """

    argv: Sequence[str]
    program: Path | Callable[[Path], str]
    user: int
    netns: int
    mntns: int
    script: tuple[Path, str] | None = None


def mismatch(seen: Process, expected: Expected) -> str:
    """Describe in a few words how a process differs from the expected one; "" if it does not."""
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
    # A filter alone can only restrict; but one with a supervisor lets that answer in place of the kernel.
    if found.filters > procfs.own_filters() and (others := procfs.supervisors()):
        yield f"it has a seccomp filter, and process {others[0]} may answer its system calls"
    if strange := sorted(path for path in found.code if not path.startswith(_LIBRARIES)):
        yield f"it has loaded code of {strange[0]}"
    yield _of_limits(found)
    # Before /proc/PID/cmdline is trusted further: check whose memory it shows.
    start = str(program(expected.argv[0], PATH))
    yield process_arguments.differing(seen.pid, start, expected.argv, ENVIRONMENT)
    yield threads.differing(seen.pid)
    if expected.script is not None:
        yield _of_script(seen, *expected.script)


def _of_program(seen: Process, found: Details, program: Path | Callable[[Path], str]) -> str:
    if not isinstance(program, Path):
        # Checked on the running program, wherever its file is by now.
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
        return f"its limit is {files} open files"
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
    """Return the moment when a process started, on the clock of file times."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + seen.started / TICKS


def program(name: str, path: str) -> Path:
    """Find a program as the pods do: through `path`. A missing program is named as it would be searched for."""
    for folder in path.split(os.pathsep):
        found = Path(folder, name)
        if found.is_file() and os.access(found, os.X_OK):
            return found
    return Path(name)
