"""Leave the machine's trace event as it was: loading a program that can print switches it on, for everybody.

That it was off is marked by a directory beside the pins before it is touched, so that whoever comes after a merlab
that was killed knows.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from merbridge_lab.dataplane.pins import Pins

#: How late the kernel may switch the trace event on, in seconds; seen: about one millisecond.
_LATE = 0.03
_EVENT = Path("events/bpf_trace/bpf_trace_printk/enable")
_MARK = "trace_event_was_off"


@contextlib.contextmanager
def kept(pins: Pins, tracefs: Path | None) -> Iterator[None]:
    """Put the event back, after the block, as it was before it; `tracefs` is where tracefs is mounted."""
    enable = tracefs / _EVENT if tracefs else None
    if enable and enable.exists() and enable.read_text().strip() == "0":
        (pins.root / _MARK).mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        put_back(pins, tracefs)


def put_back(pins: Pins, tracefs: Path | None) -> None:
    """Switch the event off if it is marked as having been off; no mark is fine."""
    enable = tracefs / _EVENT if tracefs else None
    for mark in list(pins.root.rglob(_MARK)):
        if enable and enable.exists():
            _switch_off(enable)
        mark.rmdir()


def _switch_off(enable: Path) -> None:
    """Switch the event off, and see that it stays so: newer kernels switch it on from a work queue, a little later."""
    for _ in range(5):
        enable.write_text("0")
        if not until(lambda: enable.read_text().strip() != "0", timeout=_LATE, awaiting="the trace event"):
            return
