"""State on this machine, outside the cluster: the kubeconfig that merlab wrote to, and kind's output when it failed.

It is in a folder that only this user writes to. Others may write to the cluster, so its content is no reason for root
to change a file here.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from merbridge_lab.adapters.change import change
from merbridge_lab.labs.kind import names

_KUBECONFIG = f"kind-{names.CLUSTER}.kubeconfig-path"
_LOG = f"kind-{names.CLUSTER}-create.log"
#: Maximum length of a path.
_MOST = 4096


def folder() -> Path:
    """Return the folder of this user's state."""
    named = os.environ.get("XDG_STATE_HOME", "")
    # The specification of these folders: a path that is not absolute must be ignored.
    return (Path(named) if named.startswith("/") else Path.home() / ".local" / "state") / "merlab"


@change("keep a note of the cluster")
def _write(name: str, text: str) -> Path:
    place = folder()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.chmod(0o700)
    path = place / name
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 - it is open
        file.write(text)
    return path


def _read(name: str) -> str:
    """Read one of the files; "" if it does not exist, or might be somebody else's."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder() / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 - it is open
            about = os.fstat(descriptor)
            mine = about.st_uid == os.geteuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            return file.read(_MOST + 1) if mine and stat.S_ISREG(about.st_mode) else ""
    return ""


def note_kubeconfig(path: str) -> None:
    """Record into which kubeconfig the cluster's context was put. Raises OSError."""
    _write(_KUBECONFIG, path)


def kubeconfig() -> str:
    """Return the kubeconfig that was recorded; "" if there is none."""
    noted = _read(_KUBECONFIG)
    return noted if noted.startswith("/") and len(noted) <= _MOST and "\0" not in noted else ""


def keep_log(text: str) -> str:
    """Store kind's output, and return the path; "" if it cannot be stored."""
    try:
        return str(_write(_LOG, text))
    except OSError:
        return ""


def log() -> str:
    """Return the path of that file; "" if there is none."""
    path = folder() / _LOG
    return str(path) if path.is_file() else ""


@change("forget the notes of the cluster")
def forget() -> None:
    """Remove all of it; also the folder, if nothing else is in it."""
    with contextlib.suppress(OSError):
        for name in (_KUBECONFIG, _LOG):
            (folder() / name).unlink(missing_ok=True)
        folder().rmdir()
