"""What a machine can run out of: which system errors mean it, and what to type then.

This is the only place that turns such an error into a sentence. Wherever it was raised (in a thread, during cleanup, by
the library that starts commands), the machine lacks something; it is no internal error: exit status 3.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from merbridge_lab.errors import LabError, ShortageError
from merbridge_lab.evidence import Unread, UnreadError

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

T = TypeVar("T")

#: What Python raises, without an errno, if clone(2) fails with EAGAIN.
_NO_THREAD = "can't start new thread"
#: What dash, bash and util-linux print then.
_NO_FORK = re.compile(r"[Cc]annot fork|fork[^\n]*Resource temporarily unavailable")
_CGROUPS = Path("/sys/fs/cgroup")
_RUN = "/run"


def explained(error: BaseException) -> LabError | None:
    """Return the error to show for `error`: a LabError unchanged, or a shortage if one caused it."""
    if isinstance(error, ShortageError):
        return error
    if not isinstance(error, LabError):
        return of(error)
    # If an error with its own message was raised from EAGAIN, the EAGAIN is about a lock or a socket.
    lacking = of(error, but=_AMBIGUOUS) or in_words(error.stderr or "")
    if lacking is None:
        return error
    if any(os.strerror(code) in error.what for code in _KINDS):  # it names the resource itself
        return ShortageError(error.what, error.hint or lacking.hint, error.command, error.stderr)
    return ShortageError(f"{error.what}: {lacking.what}", lacking.hint, error.command, error.stderr)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Convert an error that means a shortage, raised in the block, to the LabError that describes it."""
    try:
        yield
    except Exception as error:
        found = explained(error)
        if found is None or found is error:
            raise
        raise found from error


def of(error: BaseException, where: str | Path | None = None, *, but: Container[int] = ()) -> ShortageError | None:
    """Return the error to show if `error` means that something is used up or read-only; else None.

    `where` is the path concerned, for calls whose error does not name it. `but` are error numbers to ignore.
    """
    for each in _chain(error):
        if isinstance(each, MemoryError):
            return _memory(where)
        if isinstance(each, RuntimeError) and _NO_THREAD in str(each):
            return _processes(where)
        if isinstance(each, OSError) and each.errno in _KINDS and each.errno not in but:
            lacking = _KINDS[each.errno](where if where is not None else each.filename)
            if each.filename is None and each.strerror not in (None, os.strerror(each.errno)):
                lacking.what += f" ({each.strerror})"  # if it names no file, its message names what was tried
            return lacking
    return None


def unread(source: str, error: OSError | LabError, *words: str) -> Unread:
    """Return the Unread for a reading that failed with `error`, with the error's message if there is no better text.

    Raise ShortageError if the machine has run out of something: that tells nothing about the subject of the reading.
    """
    lacking = error if isinstance(error, ShortageError) else of(error, but=_AMBIGUOUS)
    if lacking is not None:
        raise lacking from (None if lacking is error else error)
    own = error.what if isinstance(error, LabError) else error.strerror or str(error)
    return Unread(source, ": ".join(words) or own)


def taken(source: str, take: Callable[[], T]) -> T | Unread:
    """Take a reading; return Unread with the reason if it cannot be taken.

    An error of its own type tells more (the pod was recreated meanwhile): it is passed on to the caller.
    """
    try:
        return take()
    except UnreadError as error:
        return error.unread
    except OSError as error:
        return unread(source, error)
    except LabError as error:
        if type(error) is not LabError:
            raise
        return unread(source, error)


def in_words(said: str) -> ShortageError | None:
    """Return the same for a command that failed, recognized by the words of strerror(3) in its output."""
    if _NO_FORK.search(said):
        return _processes(None)
    for code, tell in _KINDS.items():
        if os.strerror(code) in said and code not in _AMBIGUOUS:
            found = re.search(r"(/[^\s:'\"]+)[:'\"]+ *" + re.escape(os.strerror(code)), said)
            return tell(found[1] if found else None)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Return the error and its chain of causes, without errors that were only handled at the time."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _folder(where: object) -> str:
    """Return the nearest directory that df accepts."""
    if not isinstance(where, (str, bytes, Path)):
        return ""
    path = Path(os.fsdecode(where))
    found = next((each for each in (path, *path.parents) if each.is_dir()), path)
    return str(found)


def _space(where: object) -> ShortageError:
    folder = _folder(where)
    if not folder:  # the kernel also reports this if the limit of namespaces or mounts is reached
        return ShortageError(
            "no space is left on a device, or a limit of the kernel's is reached",
            hint="df -h; sysctl user fs.mount-max",
        )
    # A file system without free inodes is as full as one without free blocks; only df -i shows it.
    return ShortageError(f"there is no space left in {folder}", hint=f"df -h {folder}; df -i {folder}")


def _quota(where: object) -> ShortageError:
    folder = _folder(where)
    return ShortageError(
        f"the disk quota is used up{f' in {folder}' if folder else ''}",
        hint=f"quota -v; df -h {folder}".rstrip(),
    )


def _read_only(where: object) -> ShortageError:
    folder = _folder(where)
    hint = writable(folder) if folder else "grep -w ro /proc/mounts"
    return ShortageError(f"the file system of {folder or 'what was to be changed'} is read-only", hint=hint)


def writable(folder: str | Path) -> str:
    """Return the command that makes a folder of a read-only file system writable again."""
    mounted = _mount_point(str(folder))
    # What is in /run need not outlive the machine; what else is read-only (a container's --read-only) may stay so.
    if mounted == "/" and str(folder) == _RUN:
        return f"mount -t tmpfs tmpfs {_RUN}"
    return f"mount -o remount,rw {mounted}"


def _mount_point(folder: str) -> str:
    # Not Path.is_mount: a part of a file system that is bound to itself, read-only, has the same device as its parent.
    from merbridge_lab.adapters import mounts

    try:
        targets = {mount.target for mount in mounts.table()}
    except OSError:
        targets = set()
    return next((str(each) for each in (Path(folder), *Path(folder).parents) if each in targets), "/")


def _files(_where: object) -> ShortageError:
    most = _limit("Max open files")
    return ShortageError(f"merlab may open no more files: its limit is {most}", hint="ulimit -n 4096")


def _files_of_all(_where: object) -> ShortageError:
    return ShortageError(
        "this machine has reached its limit of open files (fs.file-max)",
        hint="cat /proc/sys/fs/file-nr; sysctl fs.file-max",
    )


def _processes(where: object) -> ShortageError:
    if isinstance(where, (str, Path)) and _CGROUPS in Path(where).parents:
        above = Path(where).parent
        return ShortageError(
            f"no further cgroup can be created in {above}",
            hint=f"cat {above}/cgroup.max.descendants {above}/cgroup.max.depth",
        )
    what = "no further process or thread can be started"
    full = next((each for each in pids_limits() if each[1] >= each[2]), None)
    if full is not None:
        place, _, most = full
        return ShortageError(
            f"{what}: the limit of {most} is reached in the cgroup {place}", hint=f"cat {place}/pids.max"
        )
    # The process that failed may have ended since, and is then no longer counted.
    tightest = min(pids_limits(), key=lambda each: each[2] - each[1], default=None)
    if tightest is not None:
        place, current, most = tightest
        return ShortageError(
            f"{what}; the cgroup {place} holds {current} of {most}", hint=f"cat {place}/pids.max; ulimit -u"
        )
    return ShortageError(what, hint="ulimit -u; cat /proc/sys/kernel/pid_max")


def _memory(_where: object) -> ShortageError:
    return ShortageError("there is not enough memory", hint="ps aux --sort -rss | head")


_KINDS: dict[int, Callable[[object], ShortageError]] = {
    errno.ENOSPC: _space,
    errno.EDQUOT: _quota,
    errno.EROFS: _read_only,
    errno.EMFILE: _files,
    errno.ENFILE: _files_of_all,
    errno.EAGAIN: _processes,
    errno.ENOMEM: _memory,
}
#: In the output of a command, EAGAIN may be about a socket or a lock: it is shown as the command printed it.
_AMBIGUOUS = {errno.EAGAIN}


def _limit(name: str) -> str:
    """Return a soft limit of this process, for a message."""
    try:
        found = re.search(rf"^{name} +(\S+)", Path("/proc/self/limits").read_text(), re.MULTILINE)
    except OSError:  # there may be no descriptor left to read it with
        import resource

        return str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return found[1] if found else "unknown"


def pids_limits() -> list[tuple[Path, int, int]]:
    """Return the cgroups that limit our processes, from ours up: directory, current number, maximum number."""
    found: list[tuple[Path, int, int]] = []
    try:
        memberships = Path("/proc/self/cgroup").read_bytes().split(b"\n")
        for line in memberships:
            _, controllers, path = os.fsdecode(line).split(":", 2) if line.count(b":") > 1 else ("", "-", "/")
            if controllers not in ("", "pids") and "pids" not in controllers.split(","):
                continue
            for root in (_CGROUPS / "pids", _CGROUPS) if controllers else (_CGROUPS, _CGROUPS / "unified"):
                found += _limits_up(root, root / path.lstrip("/"))
    except OSError:
        return found
    return found


def _limits_up(root: Path, place: Path) -> Iterator[tuple[Path, int, int]]:
    for each in (place, *place.parents):
        if each == root.parent:
            return
        try:
            most = (each / "pids.max").read_text().strip()
            if most != "max":
                yield each, int((each / "pids.current").read_text()), int(most)
        except (OSError, ValueError):
            continue
