"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def put(path: Path, content: str | bytes, *, mode: int = 0o644, owner: int = 0) -> None:
    """Write `content` to `path` in one step: whoever looks, or kills us, finds the old file or the new one.

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
        if error.filename is None:  # of a write, which does not say where there is no space
            error.filename = str(path)
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def has(path: Path, content: str) -> bool:
    """Whether `path` holds exactly `content`."""
    try:
        return path.read_text() == content
    except FileNotFoundError:
        return False


def add_log(path: Path, owner: int) -> None:
    """Make an empty file that user and group `owner` may append to, if it is not there. Raises OSError."""
    if not path.exists():
        put(path, "", owner=owner)
