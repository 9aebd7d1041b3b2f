"""Read the trace of the programs: each reader has a ring buffer of its own, and takes nothing from the others.

A reader takes a slot: it puts its ring into the map `rings` and its bit into `readers`. What its ring has no room for
the programs count in `lost`. Programs and maps are those of one lab, or one node, and so are the events.

Who owns a slot holds a lock on a directory of its name, which the kernel releases when the owner ends, however it ends:
no PID is compared, so readers in other PID namespaces are seen, too. The next reader, and whoever settles the
dataplane, free the slots of those that are gone. All changes are made under the lock of the directory above.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING, Protocol

from merbridge_lab import signals
from merbridge_lab.adapters import bpf_maps, bpf_syscall
from merbridge_lab.adapters.files import make_folder
from merbridge_lab.adapters.ring_buffer import RingBuffer
from merbridge_lab.dataplane import abi, trace
from merbridge_lab.dataplane.pins import READERS, number, u32, u64
from merbridge_lab.errors import LabError
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from merbridge_lab.dataplane.pins import Pins
    from merbridge_lab.trace_event import TraceEvent

#: Room for about 12,000 events, in bytes.
SIZE = 1 << 20
#: How often a reader checks whether it was interrupted, in seconds.
_LOOK_UP = 0.2
#: How long nothing may be attached while another version takes over, in seconds.
_GAP = 1.0
_ZERO = bytes(4)


class Traced(Protocol):
    """What the trace is of: a dataplane, of a lab or of a node."""

    @property
    def attached(self) -> bool:
        """Report whether anything is attached."""


class Reader:
    """A reader that has a slot: see `reading`."""

    def __init__(self, ring: RingBuffer, maps: _Maps, slot: int, is_replaced: Callable[[], bool]) -> None:
        self._ring, self._maps, self._slot = ring, maps, slot
        self._lost = 0
        self.is_replaced = is_replaced

    def take(self, timeout: float) -> list[TraceEvent]:
        """Return the events since the last call, and how many were lost; wait up to `timeout` seconds for the first.

        Raises OSError.
        """
        events: list[TraceEvent] = [trace.decode(record) for record in self._ring.take(timeout)]
        lost = self._maps.lost(self._slot)
        if lost != self._lost:
            events.append(trace.lost(lost - self._lost, events[-1].seconds if events else time.monotonic()))
            self._lost = lost
        return events


class _Maps:
    """Descriptors of the three maps: they stay those of the version that the reader began with."""

    def __init__(self, pins: Pins, opened: contextlib.ExitStack) -> None:
        self._readers, self._rings, self._lost = (
            opened.enter_context(pins.open_map(name)) for name in ("readers", "rings", "lost")
        )
        self.id = bpf_syscall.map_info(self._readers).id

    def lost(self, slot: int) -> int:
        """Return how many events a slot had no room for."""
        return number(bpf_maps.lookup(self._lost, u32(slot), 8) or b"")

    def open(self) -> list[int]:
        """Return the slots that programs write to."""
        told = self._told()["open"]
        return [slot for slot in range(_slots()) if told >> slot & 1]

    def enter(self, slot: int, ring: int, *, always: bool) -> None:
        """Let the programs write into a ring."""
        bpf_maps.update(self._rings, u32(slot), u32(ring))
        bpf_maps.update(self._lost, u32(slot), u64(0))
        bit, told = 1 << slot, self._told()
        self._tell(open=told["open"] | bit, always=told["always"] | (bit if always else 0))

    def leave(self, slot: int) -> None:
        """Let no program write into a slot any more, and let go of its ring."""
        told = self._told()
        self._tell(**{name: told[name] & ~(1 << slot) for name in ("open", "always")})
        bpf_maps.delete(self._rings, u32(slot))

    def _told(self) -> dict[str, int]:
        layout = abi.layouts()["readers"]
        return layout.unpack(bpf_maps.lookup(self._readers, _ZERO, layout.size) or bytes(layout.size))

    def _tell(self, **values: int) -> None:
        bpf_maps.update(self._readers, _ZERO, abi.layouts()["readers"].pack(**values))


def _slots() -> int:
    return abi.constants()["READERS"]


@contextlib.contextmanager
def _alone(folder: int) -> Iterator[None]:
    """Wait until nobody else changes slots, and keep others from it during the block; it takes no time."""
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)


@contextlib.contextmanager
def _folder(place: Path) -> Iterator[int]:
    make_folder(place)
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # and its lock goes


@contextlib.contextmanager
def _free(place: Path) -> Iterator[bool]:
    """Take a slot for the block, if nobody has it; tell whether."""
    with _folder(place) as slot:
        try:
            fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _sweep(place: Path, maps: _Maps) -> None:
    """Free the slots of readers that are gone."""
    for slot in maps.open():
        with _free(place / str(slot)) as is_free:
            if is_free:
                maps.leave(slot)


def sweep(pins: Pins) -> None:
    """Free the slots of readers that are gone: programs write to them until their rings are full. Raises OSError."""
    place = pins.root / READERS
    if place.is_dir():
        with contextlib.ExitStack() as opened:
            maps = _Maps(pins, opened)
            folder = opened.enter_context(_folder(place))
            with _alone(folder):
                _sweep(place, maps)


@contextlib.contextmanager
def reading(pins: Pins, *, always: bool = False, size: int = SIZE) -> Iterator[Reader]:
    """Take a slot, with a ring of `size` bytes, for the duration of the block; nothing of it is left behind.

    The reader is told what happens if debug output is on; with `always`, also if it is off. Raise LabError if all slots
    are taken, OSError if there are no programs, or this kernel refuses.
    """
    place = pins.root / READERS
    with contextlib.ExitStack() as opened:
        maps = _Maps(pins, opened)
        ring = opened.enter_context(contextlib.closing(RingBuffer(size, "merlab_ring")))
        folder = opened.enter_context(_folder(place))
        with _alone(folder):
            _sweep(place, maps)
            slot = _take(place, opened)
            maps.enter(slot, ring.fd, always=always)
        try:
            yield Reader(ring, maps, slot, lambda: _is_replaced(pins, maps.id))
        finally:
            with signals.shielded(), _alone(folder):
                maps.leave(slot)


def _take(place: Path, opened: contextlib.ExitStack) -> int:
    """Take the first slot that is free until `opened` is closed. Raise LabError if none is."""
    for slot in range(_slots()):
        with contextlib.ExitStack() as undo:
            if undo.enter_context(_free(place / str(slot))):
                opened.push(undo.pop_all())
                return slot
    raise LabError(
        f"the trace has {_slots()} readers already: end one of them",
        hint="ps aux",
        id="trace.readers",
    )


def _is_replaced(pins: Pins, known: int) -> bool:
    """Report whether other maps are pinned now than the reader has: those of another version, or loaded again."""
    with contextlib.suppress(FileNotFoundError), pins.open_map("readers") as readers:
        return bpf_syscall.map_info(readers).id != known
    return False


def follow(pins: Pins, traced: Traced) -> Iterator[TraceEvent | None]:
    """Yield the events as they arrive, until interrupted, or nothing is attached any more.

    If nothing arrives for a moment, yield None. Debug output need not be on. Raises LabError.
    """
    if not traced.attached:
        raise LabError("no eBPF is attached, so there is no trace", hint="merlab up", id="dataplane.incomplete")
    while _goes_on(traced):
        with _explained(pins), reading(pins, always=True) as reader:
            while not reader.is_replaced() and _goes_on(traced):
                signals.checkpoint()
                events = reader.take(_LOOK_UP)
                yield from events
                if not events:
                    yield None


def _goes_on(traced: Traced) -> bool:
    return bool(
        traced.attached
        or poll_until(lambda: traced.attached, timeout=_GAP, awaiting="the dataplane to be attached again")
    )


@contextlib.contextmanager
def _explained(pins: Pins) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LabError(
            f"the trace of the dataplane below {pins.root} cannot be read: {error.strerror or error}",
            hint="merlab doctor",
            id="reading.failed",
        ) from error


@contextlib.contextmanager
def of_batch(pins: Pins) -> Iterator[Callable[[], tuple[TraceEvent, ...]]]:
    """Yield a function that returns the events since it was called before; the first call begins. Raises LabError.

    What it raises is raised again by each later call.
    """
    with contextlib.ExitStack() as opened:
        reader: Reader | None = None

        def drain() -> tuple[TraceEvent, ...]:
            nonlocal reader
            with _explained(pins):
                if reader is None:
                    reader = opened.enter_context(reading(pins))
                return tuple(reader.take(0))

        yield drain
