"""Only one merlab command at a time changes a lab; labs of other names, or on other Dockers, do not wait for it.

The lock is a BSD lock on a file named after the lab, in a directory that only its owner can open. For root that is
/run/merlab.locks. If others could open the lock, they could hold it and so block root's merlab. The file names the
holder. Both are removed when the lock is released. The next command takes over what a killed merlab leaves.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab import shortage
from merbridge_lab.adapters.change import change
from merbridge_lab.errors import LabError
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Root's locks. Nobody else can create a folder in /run.
ROOTS = Path("/run/merlab.locks")
_FOLDER = "merlab.locks"
#: Maximum length of an entry that is read; a lock's own entry has a hundred bytes.
_LONGEST = 4096


@dataclass(frozen=True)
class Holder:
    """The holder of a lock: which command, on which lab, as which process, since when (seconds since 1970)."""

    lab: str
    command: str
    pid: int
    since: float

    def __str__(self) -> str:
        """Describe the holder in words."""
        began = time.strftime("%H:%M:%S", time.localtime(self.since))
        return f"{self.command} on the lab {self.lab} (PID {self.pid}, since {began})"


def folder() -> Path:
    """Return the folder of this user's locks."""
    if os.geteuid() == 0:
        return ROOTS
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(runtime, _FOLDER) if Path(runtime).is_absolute() else Path.home() / ".cache" / _FOLDER


@contextlib.contextmanager
def held(lab: str, command: str, *, docker: str = "", wait: float = 0.0, again: str | None = None) -> Iterator[None]:
    """Hold the lock of `lab` for the duration of the block: of the one on that Docker, as DOCKER_HOST names it.

    Wait up to `wait` seconds for another command. Raise LabError naming it, with `again` as the hint.
    """
    path = folder() / f"{lab}{_on(docker)}.lock"
    descriptor = _take(path)
    if descriptor is None and wait > 0:
        descriptor = poll_until(lambda: _take(path), timeout=wait, awaiting=lambda: _words(path), every=0.25)
    if descriptor is None:
        raise LabError(_words(path), hint=again, id="lab.busy")
    try:
        _write(descriptor, Holder(lab, command, os.getpid(), time.time()))
        yield
    finally:
        # Remove the file while the lock is held: a process that opened the file before sees that it is no longer the
        # one at `path`.
        with contextlib.suppress(OSError), change("let a lock go"):
            path.unlink()
        with contextlib.suppress(OSError), change("let a lock go"):  # the folder may hold locks of other labs
            path.parent.rmdir()
        os.close(descriptor)


def _on(docker: str) -> str:
    """Return the part of a lock's name that tells one Docker from another; it need not be read by anybody."""
    return f"-{hashlib.sha256(docker.encode()).hexdigest()[:8]}" if docker else ""


def holder(path: Path) -> Holder | None:
    """Return the holder that the lock file names; None if nobody has written it yet, or if it is gone."""
    try:
        with path.open("rb") as file:
            said = json.loads(file.read(_LONGEST))
        return Holder(str(said["lab"]), str(said["command"]), int(said["pid"]), float(said["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _words(path: Path) -> str:
    who = holder(path)
    return f"another merlab command is running: {who or f'on the lab {path.stem}'}"


@change("take a lock")
def _take(path: Path) -> int | None:
    """Take the lock and return its descriptor, or None if another process holds it. Raise LabError."""
    while True:
        try:
            _make_folder(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue  # between the two lines, the last lock was released and the folder removed with it
        except OSError as error:
            raise _cannot(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@change("make a folder of locks")
def _make_folder(path: Path) -> None:
    if path != ROOTS:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # not exist_ok: it fails if another process removes the folder meanwhile
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise LabError(
            f"{path} is not a folder of this user, and merlab's locks belong there",
            hint=f"rm -r {path}",
            id="file.not_written",
        )
    if found.st_mode & 0o077:
        path.chmod(0o700)


@change("say who has a lock")
def _write(descriptor: int, entry: Holder) -> None:
    # The entry only serves messages of others: on a full /run the lock works without it.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(entry)).encode(), 0)


def _cannot(path: Path, error: OSError) -> LabError:
    above = path.parent.parent
    hints = {errno.EROFS: shortage.writable(above), errno.ENOSPC: f"df -h {above}"}
    return LabError(
        f"merlab's lock {path} cannot be made: {os.strerror(error.errno or 0)}",
        hint=hints.get(error.errno or 0),
        id="file.not_written",
    )
