"""Have a loop that waits in select(2) woken by signals, or by another thread.

Without this, Python goes on waiting after the handler.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Bell:
    """Rung by any thread; a selector sees it. It exists as long as the process."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Return what a selector waits for."""
        return self._descriptor

    def ring(self) -> None:
        """Wake who waits."""
        os.eventfd_write(self._descriptor, 1)

    def rang(self) -> bool:
        """Report whether it was rung since the last call."""
        try:
            return os.eventfd_read(self._descriptor) > 0
        except BlockingIOError:
            return False


@contextlib.contextmanager
def woken_by_signals(selector: selectors.BaseSelector, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` and wake the selector on SIGTERM and SIGINT, for the duration of the block."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    selector.register(reading, selectors.EVENT_READ, None)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)
