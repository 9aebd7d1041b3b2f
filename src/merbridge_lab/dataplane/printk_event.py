"""Leave the machine's trace event as it was: loading a program that can print switches it on, for everybody.

That it was off is marked before it is touched, so that whoever comes after a merlab that was killed knows. The mark is
a tracefs instance of a certain name: it is wherever tracefs is mounted, and lives as long as the event itself, which
nothing in a lab's own directories does. In a container that is killed they go, and the event stays on.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab.adapters.files import delete_folder, make_folder, write
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: How late the kernel may switch the trace event on, in seconds; seen: about one millisecond.
_LATE = 0.03
_EVENT = "events/bpf_trace/bpf_trace_printk/enable"
#: Of all labs together, as the event is.
MARK = "instances/merlab_trace_event_was_off"


@contextlib.contextmanager
def kept(tracefs: Path | None) -> Iterator[None]:
    """Put the event back, after the block, as it was before it; `tracefs` is where tracefs is mounted."""
    was_off = tracefs is not None and _is_off(tracefs)
    if tracefs and was_off:
        with contextlib.suppress(OSError):  # it serves nobody unless we are killed
            make_folder(tracefs / MARK, exist_ok=False)
    try:
        yield
    finally:
        if tracefs and was_off:
            _put_back(tracefs)


def put_back(tracefs: Path | None) -> None:
    """Switch the event off if it is marked as having been off; no mark is fine."""
    if tracefs and (tracefs / MARK).is_dir():
        _put_back(tracefs)


def _is_off(tracefs: Path) -> bool:
    """Whether the event is off, or on only because a merlab is running, or was killed while it ran."""
    enable = tracefs / _EVENT
    return enable.exists() and (enable.read_text().strip() == "0" or (tracefs / MARK).is_dir())


def _put_back(tracefs: Path) -> None:
    """Switch the event off, and see that it stays so: newer kernels switch it on from a work queue, a little later."""
    enable = tracefs / _EVENT
    for _ in range(5):
        write(enable, "0")
        if not poll_until(lambda: enable.read_text().strip() != "0", timeout=_LATE, awaiting="the trace event"):
            break
    with contextlib.suppress(FileNotFoundError):
        delete_folder(tracefs / MARK)
