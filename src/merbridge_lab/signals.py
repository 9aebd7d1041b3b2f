"""Signals as something asked for at safe points, never as an exception out of nowhere.

A handler that raises could strike between flushing rules and remembering to put them back. So SIGINT, SIGTERM and
SIGHUP are only noted; the command that runs is ended, and the next `checkpoint` raises Interrupted, once. From then
on, merlab is cleaning up and nothing interrupts it any more: a second Ctrl-C changes nothing.
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
    """The user, or the system, asked merlab to stop; `signum` says how."""

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
    if _State.pending is None:  # the first one says how to end
        _State.pending = signum
    if _State.cancel is not None and not _State.shields:
        _State.cancel()


def install() -> None:
    """Take over SIGINT, SIGTERM and SIGHUP for this process.

    What merlab was started with ignoring (SIGHUP under nohup, SIGINT behind the `&` of a script) stays ignored.
    """
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _note)
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        # Then the kernel forgets how a child ended, and every command would count as one that succeeded.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _State.forgot_children = True


def give_back() -> None:
    """Have the signals as merlab was started with them, for a program that takes its place.

    Python ignores SIGPIPE and SIGXFSZ and does not say how it found them. What has a handler goes by execve(2).
    """
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(signum, signal.SIG_DFL)
    if _State.forgot_children:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def hang_up() -> None:
    """Take note that the terminal is gone, which the kernel tells by SIGHUP only to its own session.

    Where SIGHUP is ignored, so is this.
    """
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        _State.hung_up = True
        _note(signal.SIGHUP, None)


def hung_up() -> bool:
    """Whether the terminal is gone."""
    return _State.hung_up


def is_shielded() -> bool:
    """Whether what goes on must finish, or is the clean-up of what was interrupted."""
    return bool(_State.shields or _State.raised)


def checkpoint() -> None:
    """Raise Interrupted if a signal came in and nothing that must be finished is under way."""
    if _State.pending is not None and not _State.shields and not _State.raised:
        _State.raised = True
        raise Interrupted(_State.pending)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Let what is in the block finish; a signal that came in meanwhile is seen at the next checkpoint."""
    _State.shields += 1
    try:
        yield
    finally:
        _State.shields -= 1


@contextlib.contextmanager
def cancelling(cancel: Callable[[], None]) -> Iterator[None]:
    """Call `cancel` (quick, from the signal handler) when a signal comes in while the block runs."""
    before, _State.cancel = _State.cancel, cancel
    try:
        if _State.pending is not None and not _State.shields and not _State.raised:
            cancel()  # it came in just before: nobody has told the block yet
        yield
    finally:
        _State.cancel = before
