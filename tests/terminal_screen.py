"""A program on a terminal of a size, and what its screen shows: a real pty, read by a terminal emulator."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING

import pyte
from tests.merlab_cli import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class OnScreen:
    """A program whose terminal has `columns` and `rows`; its screen is read line by line."""

    def __init__(self, argv: Sequence[str], columns: int = 80, rows: int = 24, **env: str) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        env = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONIOENCODING": "utf-8", **env}
        self.process = subprocess.Popen(
            argv,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no thread is running here
            env=environment(**env),
        )
        os.close(theirs)

    def lines(self) -> list[str]:
        """Return what the screen shows, without trailing spaces."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """What the screen shows."""
        return "\n".join(self.lines()).rstrip()

    def read(self, seconds: float = 0.1) -> bool:
        """Take in what arrives within `seconds`; return False at the end of the program's output."""
        if select.select([self._ours], [], [], seconds)[0]:
            try:
                self._stream.feed(os.read(self._ours, 65536))
            except OSError:  # the program has ended
                return False
        return True

    def until(self, shown: str | Callable[[str], bool], timeout: float = 30) -> str:
        """Read until the screen shows `shown`; return the screen. Raise AssertionError if it does not."""
        look = (lambda text: shown in text) if isinstance(shown, str) else shown
        end = time.monotonic() + timeout
        while not look(self.text):
            assert time.monotonic() < end, f"{shown!r} is not on the screen:\n{self.text}"
            if not self.read() and not look(self.text):
                raise AssertionError(f"the program ended before {shown!r} was on the screen:\n{self.text}")
        return self.text

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._ours, keys.encode())

    def end(self, timeout: float = 30) -> int:
        """Read to the end of the program; return its exit status."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.read():
            pass
        return self.process.wait(max(end - time.monotonic(), 1))

    def close(self) -> None:
        """End the program if it still runs, and close the terminal."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
