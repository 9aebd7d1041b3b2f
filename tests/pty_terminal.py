"""A terminal that a test can remove."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from tests.merlab_cli import environment

if TYPE_CHECKING:
    from collections.abc import Sequence


class OnTerminal:
    """A process on a terminal that is not its controlling one: nobody sends it SIGHUP when that is removed."""

    def __init__(self, argv: Sequence[str], ignore: Sequence[int] = (), **env: str) -> None:
        self.ours, theirs = pty.openpty()

        def before() -> None:
            for signum in ignore:
                signal.signal(signum, signal.SIG_IGN)

        self.process = subprocess.Popen(
            argv,
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=before,  # noqa: PLW1509 - no thread is running here
            env=environment(TERM="xterm", **env),
        )
        os.close(theirs)

    def read_until(self, word: bytes, timeout: float = 20) -> bytes:
        """Read the output until `word` is in it."""
        seen = b""
        until = time.monotonic() + timeout
        while word not in seen and time.monotonic() < until:
            seen += os.read(self.ours, 4096)
        return seen

    def go_away(self) -> None:
        """Close it, as a closed network connection or window does."""
        os.close(self.ours)

    def end(self, timeout: float = 30) -> tuple[int, str]:
        """Wait for the end; return the status and the output on stderr."""
        _, errors = self.process.communicate(timeout=timeout)
        return self.process.returncode, errors.decode()
