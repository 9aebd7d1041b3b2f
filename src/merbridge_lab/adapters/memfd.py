"""Files that have no name: other programs read them by a path in /proc, and they go with this process."""

from __future__ import annotations

import os


class MemFile:
    """A file in memory, for what must not be left on a disk: keys, most of all."""

    def __init__(self, content: bytes) -> None:
        self._descriptor = os.memfd_create("merlab")
        os.write(self._descriptor, content)

    @property
    def path(self) -> str:
        """Where programs of the same user find it while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        """Let it go; once more is fine, and closes nothing that has got its number since."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
