"""What a file holds, by its SHA-256; and what a Python package says that its files hold."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK = 1 << 20
#: By device, inode, size, and the times of its last writing and of its last change, which nobody can set back (that
#: of the change is the kernel's own). Kept for this run of merlab alone: what lies in a file can be written over.
_KNOWN: dict[tuple[int, ...], str] = {}


def of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits; 0.1 s for Envoy's 100 MB. Raises OSError."""
    with path.open("rb") as file:
        seen = os.fstat(file.fileno())
        key = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
        if key not in _KNOWN:
            # Not mapped: a file that is cut meanwhile would end merlab by SIGBUS.
            digest = hashlib.sha256()
            while block := file.read(_BLOCK):
                digest.update(block)
            _KNOWN[key] = digest.hexdigest()
        return _KNOWN[key]


@functools.cache  # of one run of merlab: pip puts a new file in the place of an old one
def installed(distribution: str, name: str) -> str | None:
    """Return the SHA-256 of the file `name` ("package/file") of a distribution as pip installed it; None if unknown.

    It is in the RECORD beside the package, which who puts another file in the place of that one does not alter.
    """
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.as_posix() == name and file.hash is not None and file.hash.mode == "sha256":
            return base64.urlsafe_b64decode(file.hash.value + "==").hex()
    return None
