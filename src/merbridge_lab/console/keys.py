"""Single keys of the presenter, read from the terminal as they are pressed."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from typing import TYPE_CHECKING, Protocol

from merbridge_lab import polling, signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENTER, TAB, BACK, QUIT, OTHER = "enter", "tab", "b", "q", "other"
_NAMES = {"\r": ENTER, "\n": ENTER, "\t": TAB, "b": BACK, "B": BACK, "q": QUIT, "Q": QUIT}
#: Nobody waits longer for a key, in seconds.
_A_DAY = 86400.0


class Keys(Protocol):
    """Where the presenter's keys come from; a command that nobody types is typed in `most_typing` seconds at most."""

    most_typing: float

    def read(self, tick: Callable[[], None], *, results: bool = False) -> str:
        """Wait for a key and return its name; call `tick` while waiting. Raises Interrupted.

        `results` is whether the screen shows those of a step, which take longer to read.
        """

    def pending(self, seconds: float) -> str | None:
        """Return a key that is pressed within `seconds`; None if none is."""


class TerminalKeys:
    """The keys of the terminal on stdin; `listening` makes it hand them over one by one."""

    most_typing = 2.0

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take keys without Enter and without echo for the duration of the block; Ctrl-C stays a signal."""
        before = termios.tcgetattr(self._fd)
        try:
            tty.setcbreak(self._fd, termios.TCSADRAIN)
            yield
        finally:
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, before)

    def read(self, tick: Callable[[], None], *, results: bool = False) -> str:  # noqa: ARG002 - they stay until a key
        """Wait for a key and return its name; call `tick` once a second. Raises Interrupted."""
        began = time.monotonic()

        def look() -> str | None:
            nonlocal began
            if time.monotonic() - began >= 1:
                began = time.monotonic()
                tick()
            return self.pending(0.05)

        found = polling.poll_until(look, timeout=_A_DAY, awaiting="a key", every=0.05)
        return found or QUIT

    def pending(self, seconds: float) -> str | None:
        """Return a key that is pressed within `seconds`; None if none is."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return None
        try:
            raw = os.read(self._fd, 16)
        except OSError:
            raw = b""
        if not raw:  # the terminal is gone: nobody will press a key any more
            signals.hang_up()
            signals.checkpoint()
            return QUIT
        # Arrow keys and the like send several bytes; they are one key.
        return _NAMES.get(raw.decode(errors="replace")[0], OTHER) if raw[:1] != b"\x1b" else OTHER


#: So many times longer stays what a step found.
_RESULTS = 3


class AutomaticKeys:
    """Goes on by itself `seconds` after each command, thrice that at the end of a step: for a rehearsal or a recording.

    Typing takes half as long at most, so that it does not dominate a short rehearsal.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.most_typing = min(seconds / 2, TerminalKeys.most_typing)

    def read(self, tick: Callable[[], None], *, results: bool = False) -> str:
        """Wait, and return Enter. Raises Interrupted."""
        began, seconds = time.monotonic(), self._seconds * (_RESULTS if results else 1)

        def over() -> bool:
            tick()
            return time.monotonic() - began >= seconds

        polling.poll_until(over, timeout=seconds + 1, awaiting="the next command", every=0.2)
        return ENTER

    def pending(self, seconds: float) -> str | None:
        """Wait `seconds`, and return None: nobody presses a key."""
        if not seconds:
            signals.checkpoint()
            return None
        polling.poll_until(lambda: False, timeout=seconds, awaiting="the next key", every=seconds)
        return None
