"""Wait for a condition, with a deadline, and report what is awaited.

This is the only place where merlab sleeps.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_exponential,
)

from merbridge_lab import signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

#: Interval between progress reports of a long-running command, in seconds.
_BETWEEN_WORDS = 0.5


#: How many times longer than usual everything may take: merlab sets it in a guest whose instructions are emulated.
SLOWNESS = "MERLAB_SLOWNESS"


def limit(seconds: float) -> float:
    """Return a time limit as it is on this machine: longer in an emulated guest."""
    try:
        times = float(os.environ.get(SLOWNESS) or 1)
    except ValueError:
        return seconds
    return seconds * times if 1 <= times < math.inf else seconds


def is_slowed() -> bool:
    """Report whether merlab runs in an emulated guest: how long something takes there says nothing."""
    return limit(1) > 1


class _Listener:
    tell: Callable[[str, float], None] | None = None


def on_progress(tell: Callable[[str, float], None] | None) -> None:
    """Call `tell` repeatedly during the block, with what is awaited and for how many seconds already."""
    _Listener.tell = tell


def _tell(awaiting: str, seconds: float) -> None:
    if _Listener.tell is not None:
        _Listener.tell(awaiting, seconds)


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Report what is running, and for how long already, while the block runs: for a command that takes long."""
    began = time.monotonic()
    over = threading.Event()

    def body() -> None:
        while not over.wait(_BETWEEN_WORDS):
            _tell(what, time.monotonic() - began)

    thread = threading.Thread(target=body, name="merlab-during", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def poll_until(
    look: Callable[[], T], *, timeout: float, awaiting: str | Callable[[], str], every: float = 0.1
) -> T | None:
    """Call `look` until it returns something true, for at most `timeout` seconds; return that, or the last result.

    `awaiting` describes in a few words what is awaited, for the progress line; or it is a function that returns this.
    `look` is called every `every` seconds, more often at first. `timeout` is longer on a slow machine, see limit(). The
    caller decides what a timeout means; it must not take it for a success.
    """
    result = look()
    if result:
        return result

    def nap(seconds: float) -> None:
        _tell(awaiting if isinstance(awaiting, str) else awaiting(), time.monotonic() - began)
        signals.checkpoint()
        time.sleep(seconds)
        signals.checkpoint()

    began = time.monotonic()
    attempts = Retrying(
        retry=retry_if_result(lambda seen: not seen),
        wait=wait_exponential(multiplier=0.01, max=every),
        stop=stop_after_delay(limit(timeout)),
        sleep=nap,
    )
    try:
        return attempts(look)
    except RetryError as last:
        ended: T = last.last_attempt.result()
        return ended


def retrying(work: Callable[[], T], *, on: type[Exception], timeout: float, awaiting: str) -> T:
    """Do `work`, and retry if it raises `on`, for at most `timeout` seconds; then raise the last of these."""
    began = time.monotonic()

    def nap(seconds: float) -> None:
        _tell(awaiting, time.monotonic() - began)
        signals.checkpoint()
        time.sleep(seconds)
        signals.checkpoint()

    attempts = Retrying(
        retry=retry_if_exception_type(on),
        wait=wait_exponential(multiplier=0.05, max=1.0),
        stop=stop_after_delay(limit(timeout)),
        sleep=nap,
        reraise=True,
    )
    return attempts(work)
