"""Leave the machine's trace event as it was: loading a program that can print switches it on, for everybody.

A mark that the event was off is set before the load, so that the next merlab knows if this one is killed. The mark is a
tracefs instance with a certain name: it exists wherever tracefs is mounted, and as long as the event itself. Nothing in
a lab's own directories does: in a container that is killed they disappear, and the event stays on.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab.adapters.files import delete_folder, make_folder, write
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: How late the kernel may switch the trace event on, in seconds; measured: about one millisecond.
_LATE = 0.03
_EVENT = "events/bpf_trace/bpf_trace_printk/enable"
#: Shared by all labs, as the event is.
MARK = "instances/merlab_trace_event_was_off"


@contextlib.contextmanager
def kept(tracefs: Path | None) -> Iterator[None]:
    """Restore the event, after the block, to its state from before; `tracefs` is where tracefs is mounted."""
    was_off = tracefs is not None and _is_off(tracefs)
    if tracefs and was_off:
        with contextlib.suppress(OSError):  # it is only needed if we are killed
            make_folder(tracefs / MARK, exist_ok=False)
    try:
        yield
    finally:
        if tracefs and was_off:
            _put_back(tracefs)


def put_back(tracefs: Path | None) -> None:
    """Switch the event off if it is marked as having been off; succeed if there is no mark."""
    if tracefs and (tracefs / MARK).is_dir():
        _put_back(tracefs)


def _is_off(tracefs: Path) -> bool:
    """Report whether the event is off, or on only because a merlab is running, or was killed while it ran."""
    enable = tracefs / _EVENT
    return enable.exists() and (enable.read_text().strip() == "0" or (tracefs / MARK).is_dir())


def _put_back(tracefs: Path) -> None:
    """Switch the event off and check that it stays off: newer kernels switch it on from a work queue, shortly after."""
    enable = tracefs / _EVENT
    for _ in range(5):
        write(enable, "0")
        if not poll_until(lambda: enable.read_text().strip() != "0", timeout=_LATE, awaiting="the trace event"):
            break
    with contextlib.suppress(FileNotFoundError):
        delete_folder(tracefs / MARK)
