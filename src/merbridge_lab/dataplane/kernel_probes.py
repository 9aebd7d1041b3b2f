"""What this kernel makes of sockets in a sockhash, found by doing it to throw-away sockets.

Takes a fraction of a second. Needs root. Nothing is attached to anything but a map of the probe's own, nor pinned.
What could harm a kernel is not probed: see SOCKMAP_FIXES in adapters/kernel_features.py.
"""

from __future__ import annotations

import enum
import functools
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab.dataplane import probe_sockets
from merbridge_lab.dataplane.probe_sockets import Arrangement, apart, pair, pause, received_memory
from merbridge_lab.dataplane.reader_probes import READERS, is_readable, unread

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

_TCP_BYTES, _REDIRECTED_BYTES = 1000, 700
_CHARGED_BYTES = 32768
_BLOCK_BYTES = 65521

#: The set-ups that are compared with TCP in no sockhash.
ARRANGEMENTS = (probe_sockets.HASHED, probe_sockets.SENDER, probe_sockets.SWITCHED, probe_sockets.REDIRECTED)
#: The same with a program on the sockhash that lets everything pass (sk_skb): the remedy that others use for FIONREAD.
WITH_VERDICT = (probe_sockets.VERDICT_TCP, probe_sockets.VERDICT_SWITCHED, probe_sockets.VERDICT_REDIRECTED)


class Counts(enum.Enum):
    """What FIONREAD counts on a socket in a sockhash."""

    TCP = "bytes that came by TCP only"
    REDIRECTED = "redirected bytes only"
    BOTH = "both"
    NEITHER = "neither correctly"


@dataclass(frozen=True)
class Fionread:
    """FIONREAD after 1000 bytes by TCP, 700 redirected, and 700 redirected with 1000 by TCP behind them."""

    tcp: int
    redirected: int
    mixed: int

    @property
    def counts(self) -> Counts:
        """Name the behaviour."""
        both = _TCP_BYTES + _REDIRECTED_BYTES
        known = {
            (_TCP_BYTES, 0, _TCP_BYTES): Counts.TCP,
            (0, _REDIRECTED_BYTES, _REDIRECTED_BYTES): Counts.REDIRECTED,
            (_TCP_BYTES, _REDIRECTED_BYTES, both): Counts.BOTH,
        }
        return known.get((self.tcp, self.redirected, self.mixed), Counts.NEITHER)

    def __str__(self) -> str:
        return (
            f"{self.tcp} of {_TCP_BYTES} by TCP, {self.redirected} of {_REDIRECTED_BYTES} redirected, "
            f"{self.mixed} of {_TCP_BYTES + _REDIRECTED_BYTES} of both"
        )


@dataclass(frozen=True)
class Answer:
    """What one way of reading said, and what it says of TCP in no sockhash."""

    found: str
    reference: str

    @property
    def is_right(self) -> bool:
        """Report whether a program that reads in this way sees no difference."""
        return self.found == self.reference


@dataclass(frozen=True)
class Flow:
    """A stream to a reader that does not read at first: redirected in the beginning, then by TCP."""

    total: int
    #: How much was let in before the sender had to wait.
    let_in: int
    received: int
    is_in_order: bool

    @property
    def is_whole(self) -> bool:
        """Report whether every byte arrived, in order."""
        return self.is_in_order and self.received == self.total

    def __str__(self) -> str:
        order = "in order" if self.is_in_order else "out of order"
        return f"{self.received} of {self.total} bytes, {order}; {self.let_in} let in before the reader read"


@dataclass(frozen=True)
class Probes:
    """What was found; `readers` by arrangement, then by way of reading."""

    fionread: Fionread
    #: sk_rmem_alloc for 32 kB of unread redirected bytes.
    charged: int
    readers: Mapping[Arrangement, Mapping[str, Answer]]
    seconds: float = 0.0

    @property
    def is_charged(self) -> bool:
        """Report whether redirected bytes count as received memory of their reader."""
        return self.charged >= _CHARGED_BYTES

    def wrong(self, *arrangements: Arrangement) -> list[str]:
        """Return the ways of reading that see a difference from TCP in any of these arrangements."""
        return [name for name in READERS if not all(self.readers[each][name].is_right for each in arrangements)]


@dataclass(frozen=True)
class Streams:
    """A stream without and with a verdict program on the sockhash."""

    without: Flow
    with_verdict: Flow


def probe() -> Probes:
    """Find out what a sockhash and redirecting do to readers, in a network namespace of its own. Raises OSError."""
    return apart(lambda: _probe(ARRANGEMENTS, probe_sockets.HASHED))


def is_charged() -> bool:
    """Find out whether redirected bytes count as received memory of their reader, in a millisecond. Raises OSError."""
    return apart(_charged) >= _CHARGED_BYTES


def probe_verdict() -> Probes:
    """Find out the same with a verdict program on the sockhash. Raises OSError."""
    return apart(lambda: _probe(WITH_VERDICT, probe_sockets.VERDICT_TCP))


def probe_streams(size: int) -> Streams:
    """Send this many bytes to a slow reader, without and with a verdict program. Raises OSError."""
    return apart(lambda: Streams(_flow(probe_sockets.HASHED, size), _flow(probe_sockets.VERDICT_TCP, size)))


def _probe(arrangements: Sequence[Arrangement], mixed: Arrangement) -> Probes:
    began = time.monotonic()
    reference = _read_by_all(probe_sockets.TCP)
    readers = {
        each: {name: Answer(found, reference[name]) for name, found in _read_by_all(each).items()}
        for each in arrangements
    }
    return Probes(_fionread(mixed), _charged(), readers, time.monotonic() - began)


def _read_by_all(arrangement: Arrangement) -> dict[str, str]:
    found = {}
    for name, read in READERS.items():
        with pair(arrangement) as made:
            try:
                found[name] = read(made)
            except TimeoutError:
                found[name] = "nothing arrived"
    return found


def _fionread(arrangement: Arrangement) -> Fionread:
    tcp, redirected = b"t" * _TCP_BYTES, b"r" * _REDIRECTED_BYTES
    found = []
    for first, then in ((b"", tcp), (redirected, b""), (redirected, tcp)):
        with pair(arrangement) as made:
            if first:
                made.send_redirected(first)
            if then:
                made.send(then)
            is_readable(made.reader)
            found.append(_settled(made.reader))
    return Fionread(*found)


def _settled(sock: socket.socket) -> int:
    """Return FIONREAD once it has stopped changing: a verdict program may run a moment later."""
    count = unread(sock)
    while True:
        pause(0.005)
        before, count = count, unread(sock)
        if before == count:
            return count


def _charged() -> int:
    with pair(probe_sockets.REDIRECTED) as made:
        before = received_memory(made.reader)
        made.send(b"c" * _CHARGED_BYTES)
        return received_memory(made.reader) - before


@functools.cache
def _block() -> bytes:
    return bytes((index * index + index // 251) % 256 for index in range(_BLOCK_BYTES))


def _flow(arrangement: Arrangement, total: int) -> Flow:
    """Send a stream, the first block redirected and the rest by TCP; read only when the sender has to wait."""
    with pair(arrangement) as made:
        made.send_redirected(_block())
        made.writer.setblocking(False)
        made.reader.setblocking(False)
        sent, received, let_in, is_in_order = _BLOCK_BYTES, 0, 0, True
        deadline = time.monotonic() + 10 * probe_sockets.PATIENCE + total / 4e6
        while received < total and is_in_order and time.monotonic() < deadline:
            sent += _send_some(made.writer, sent, total)
            let_in = let_in or sent
            got = _receive_some(made.reader)
            is_in_order = got == _at(received, len(got))
            received += len(got)
            if not got and sent == total and not is_readable(made.reader):
                break
        return Flow(total, let_in, received, is_in_order)


def _at(position: int, length: int) -> bytes:
    """Return what belongs at a position of the stream."""
    start = position % _BLOCK_BYTES
    return (_block() * (2 + length // _BLOCK_BYTES))[start : start + length]


def _send_some(writer: socket.socket, position: int, total: int) -> int:
    """Send until the sender has to wait, or all is sent; return how much."""
    count, patience = 0, select.poll()
    patience.register(writer, select.POLLOUT)
    while position + count < total and patience.poll(5):
        try:
            count += writer.send(_at(position + count, min(_BLOCK_BYTES, total - position - count)))
        except BlockingIOError:
            break
    return count


def _receive_some(reader: socket.socket) -> bytes:
    got = b""
    while len(got) < 16 * _BLOCK_BYTES:
        try:
            chunk = reader.recv(_BLOCK_BYTES)
        except BlockingIOError:
            break
        if not chunk:
            break
        got += chunk
    return got
