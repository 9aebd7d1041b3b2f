"""Signals as requests that are handled at safe points, never as an exception at an arbitrary place.

A handler that raises could run between the flush of rules and the record that they must be restored. So SIGINT, SIGTERM
and SIGHUP are only recorded. The command that runs is ended, and the next `checkpoint` raises Interrupted, once. From
then on, merlab cleans up and nothing interrupts it any more: a second Ctrl-C changes nothing.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The user, or the system, asked merlab to stop; `signum` is the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class _State:
    pending: int | None = None
    raised: bool = False
    shields: int = 0
    hung_up: bool = False
    forgot_children: bool = False
    cancel: Callable[[], None] | None = None


def _note(signum: int, _frame: FrameType | None) -> None:
    if _State.raised:
        return
    if _State.pending is None:  # the first signal decides the exit status
        _State.pending = signum
    if _State.cancel is not None and not _State.shields:
        _State.cancel()


def install() -> None:
    """Take over SIGINT, SIGTERM and SIGHUP for this process.

    A signal that was ignored when merlab started (SIGHUP under nohup, SIGINT behind the `&` of a script) stays ignored.
    """
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _note)
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        # If SIGCHLD is ignored, the kernel discards the exit status of a child, and every command would count as
        # successful.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _State.forgot_children = True


def give_back() -> None:
    """Restore the signals as merlab was started with them, for a program that replaces it.

    Python ignores SIGPIPE and SIGXFSZ and does not tell how it found them. execve(2) resets signals that have a
    handler.
    """
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(signum, signal.SIG_DFL)
    if _State.forgot_children:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def hang_up() -> None:
    """Record that the terminal is gone; the kernel reports this by SIGHUP only to the terminal's own session.

    If SIGHUP is ignored, this is ignored, too.
    """
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        _State.hung_up = True
        _note(signal.SIGHUP, None)


def hung_up() -> bool:
    """Report whether the terminal is gone."""
    return _State.hung_up


def is_shielded() -> bool:
    """Report whether the current work must finish, or is the cleanup after an interrupt."""
    return bool(_State.shields or _State.raised)


def checkpoint() -> None:
    """Raise Interrupted if a signal arrived and no work is running that must finish."""
    if _State.pending is not None and not _State.shields and not _State.raised:
        _State.raised = True
        raise Interrupted(_State.pending)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Shield the block from signals; the next checkpoint handles a signal that arrived meanwhile."""
    _State.shields += 1
    try:
        yield
    finally:
        _State.shields -= 1


@contextlib.contextmanager
def cancelling(cancel: Callable[[], None]) -> Iterator[None]:
    """Call `cancel` (quick, from the signal handler) if a signal arrives while the block runs."""
    before, _State.cancel = _State.cancel, cancel
    try:
        if _State.pending is not None and not _State.shields and not _State.raised:
            cancel()  # the signal arrived just before: nobody has informed the block yet
        yield
    finally:
        _State.cancel = before
