"""Wait for something to become true: to a deadline, saying what is awaited.

The only place where merlab sleeps.
"""

from __future__ import annotations

import contextlib
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

#: How often a command that takes its time is told of, in seconds.
_BETWEEN_WORDS = 0.5


class _Listener:
    tell: Callable[[str, float], None] | None = None


def on_progress(tell: Callable[[str, float], None] | None) -> None:
    """Have `tell` called with what is awaited and for how many seconds already, again and again while it lasts."""
    _Listener.tell = tell


def _tell(awaiting: str, seconds: float) -> None:
    if _Listener.tell is not None:
        _Listener.tell(awaiting, seconds)


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Say what goes on, and for how long already, while the block runs: a command that takes its time."""
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
    """Call `look` until it gives something true, at most `timeout` seconds; give that, or the last thing it gave.

    `awaiting` says in a few words what is awaited, for the progress line, or is asked for them. Looks come `every`
    so many seconds, the first ones sooner. The caller decides what a timeout means; what it must not do is take it
    for a success.
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
        stop=stop_after_delay(timeout),
        sleep=nap,
    )
    try:
        return attempts(look)
    except RetryError as last:
        ended: T = last.last_attempt.result()
        return ended


def retrying(work: Callable[[], T], *, on: type[Exception], timeout: float, awaiting: str) -> T:
    """Do `work`, again where it raises `on`, for at most `timeout` seconds; raises the last of these then."""
    began = time.monotonic()

    def nap(seconds: float) -> None:
        _tell(awaiting, time.monotonic() - began)
        signals.checkpoint()
        time.sleep(seconds)
        signals.checkpoint()

    attempts = Retrying(
        retry=retry_if_exception_type(on),
        wait=wait_exponential(multiplier=0.05, max=1.0),
        stop=stop_after_delay(timeout),
        sleep=nap,
        reraise=True,
    )
    return attempts(work)
