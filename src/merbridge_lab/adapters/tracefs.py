"""A trace buffer of the lab's own: a tracefs instance with the one event that bpf_trace_printk() writes to.

Since Linux 5.9 bpf_trace_printk() is an ordinary trace event (kernel/trace/bpf_trace.h). Enabled in an instance, its
lines go to that instance's buffer, and nothing is taken from other readers.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from typing import TYPE_CHECKING

from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.files import delete_folder, make_folder, write
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_EVENT = "events/bpf_trace/bpf_trace_printk/enable"
_CHUNK = 1 << 16
#: With these, a line has its default columns.
_OPTIONS = {
    "context-info": "1",
    "irq-info": "1",
    "latency-format": "0",
    "raw": "0",
    "hex": "0",
    "bin": "0",
    "fields": "0",
}


class Instance:
    """The instance `name` of the tracefs mounted at `mount`."""

    def __init__(self, mount: Path, name: str) -> None:
        self.path = mount / "instances" / name

    @property
    def pipe(self) -> Path:
        """Return where its lines are read; reading removes them."""
        return self.path / "trace_pipe"

    @property
    def switch(self) -> Path:
        """Return the file that switches the event on in this instance."""
        return self.path / _EVENT

    @property
    def enabled(self) -> bool:
        """Report whether lines are collected now. Raise OSError if that cannot be read."""
        try:
            return self.switch.read_text().strip() == "1"
        except FileNotFoundError:
            return False

    def enable(self) -> None:
        """Create the instance if it does not exist, and make it collect lines in a known format. Raises OSError.

        A new instance inherits the options of the machine's own buffer, some of which omit whole columns.
        """
        make_folder(self.path)
        for option, value in _OPTIONS.items():
            with contextlib.suppress(OSError):  # this kernel has no such option, or no other form
                write(self.path / "options" / option, value)
        write(self.path / "tracing_on", "1")
        write(self.switch, "1")

    def siblings(self) -> list[str]:
        """List this one, if it exists, and those of readers: of this name, with "-trace-" and a PID after it."""
        folder = self.path.parent
        if not folder.is_dir():
            return []
        return [
            each.name
            for each in folder.iterdir()
            if re.fullmatch(rf"{re.escape(self.path.name)}(-trace-\d+)?", each.name)
        ]

    def remove(self) -> None:
        """Remove the instance and everything in it; succeed if it is missing. Raise OSError if someone reads it."""
        with contextlib.suppress(FileNotFoundError):
            delete_folder(self.path)

    @contextlib.contextmanager
    def kept(self) -> Iterator[Callable[[], None]]:
        """Return a function that removes the instance even if tracefs is unmounted from its path meanwhile."""
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError), change("delete a folder"):
                os.rmdir(self.path.name, dir_fd=folder)

        try:
            yield remove
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def following(self) -> Iterator[Callable[[float], list[str]]]:
        """Return a function that waits up to some seconds for lines, and reads and removes them, complete ones only."""
        descriptor = os.open(self.pipe, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        rest = ""

        def take(timeout: float) -> list[str]:
            nonlocal rest
            deadline = time.monotonic() + timeout
            lines: list[str] = []
            # The kernel may wake a reader before a line can be read.
            while not lines and select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                with contextlib.suppress(BlockingIOError):
                    rest += os.read(descriptor, _CHUNK).decode(errors="replace")
                *lines, rest = rest.split("\n")
                if not lines and time.monotonic() >= deadline:
                    break
            return lines

        try:
            yield take
        finally:
            os.close(descriptor)

    def drain(self) -> list[str]:
        """Read and remove the lines that are there now, without waiting for more; none if there is no instance."""
        try:
            descriptor = os.open(self.pipe, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return []
        chunks = []
        try:
            while chunk := os.read(descriptor, _CHUNK):
                chunks.append(chunk)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
        return lines_of(b"".join(chunks).decode(errors="replace"))
