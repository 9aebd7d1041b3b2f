"""Files that are written completely or not at all; folders and files created and deleted."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from typing import TYPE_CHECKING

from merbridge_lab.adapters.change import change

if TYPE_CHECKING:
    from pathlib import Path


@change("write a file")
def write_atomic(path: Path, content: str | bytes, *, mode: int = 0o644, owner: int = 0) -> None:
    """Write `content` to `path` in one step: a reader, or a kill, finds either the old file or the new one.

    `owner` is user and group. Raises OSError.
    """
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            os.fchown(descriptor, owner, owner)
            file.write(content.encode() if isinstance(content, str) else content)
        draft.replace(path)
    except OSError as error:
        if error.filename is None:  # from a write, which does not report where space is missing
            error.filename = str(path)
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def require_writable(path: Path) -> None:
    """Raise OSError if `write_atomic` could not write `path`, as far as that is known before; leave nothing behind."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():  # a device, say: renaming a file over it would destroy it
        raise OSError(errno.EINVAL, "it exists, and is not a regular file", str(path))
    with contextlib.suppress(FileNotFoundError):
        path.with_name(f".{path.name}.new").lstat()  # too long a name
    try:
        os.close(os.open(path.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        # Not every file system has files without a name (open(2), O_TMPFILE).
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL) or not os.access(path.parent, os.W_OK):
            raise


def has_content(path: Path, content: str) -> bool:
    """Report whether `path` holds exactly `content`."""
    try:
        return path.read_text() == content
    except FileNotFoundError:
        return False


def add_log(path: Path, owner: int) -> None:
    """Create an empty file that user and group `owner` may append to, if it does not exist. Raises OSError."""
    if not path.exists():
        write_atomic(path, "", owner=owner)


@change("make a folder")
def make_folder(path: Path, *, mode: int = 0o777, parents: bool = False, exist_ok: bool = True) -> None:
    """Create a folder. Raises OSError."""
    path.mkdir(mode=mode, parents=parents, exist_ok=exist_ok)


@change("write into a file")
def write(path: Path, content: str) -> None:
    """Write `content` into a file of the kernel, or one that need not be complete. Raises OSError."""
    path.write_text(content)


@change("delete a file")
def delete(path: Path) -> None:
    """Delete a file; succeed if it does not exist. Raises OSError."""
    path.unlink(missing_ok=True)


@change("delete a folder")
def delete_folder(path: Path) -> None:
    """Delete an empty folder. Raises OSError."""
    path.rmdir()


@change("delete a tree")
def delete_tree(path: Path) -> None:
    """Delete a folder with its content, as far as possible; succeed if it does not exist."""
    shutil.rmtree(path, ignore_errors=True)


@change("rename")
def rename(path: Path, to: Path) -> None:
    """Rename a file or folder, replacing an existing file of the new name. Raises OSError."""
    path.rename(to)


@change("set a file's mode")
def set_mode(path: Path, mode: int) -> None:
    """Set the permissions of a file or folder, whatever the umask is. Raises OSError."""
    path.chmod(mode)
