"""Files without a name: other programs read them by a path in /proc, and they disappear with this process."""

from __future__ import annotations

import os


class MemFile:
    """A file in memory, for content that must not be left on a disk: above all keys."""

    def __init__(self, content: bytes = b"") -> None:
        self._descriptor = os.memfd_create("merlab")
        os.write(self._descriptor, content)

    def read(self) -> bytes:
        """Return its content, also what other programs have written."""
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)

    def clear(self) -> None:
        """Remove its content."""
        os.ftruncate(self._descriptor, 0)

    @property
    def path(self) -> str:
        """The path where programs of the same user find it while this process runs."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        """Close it. A second call is allowed, and does not close another file that has got its number since."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
