"""Connected sockets in a sockhash of their own, for the probes of the kernel.

Nothing here is seen by others: the sockets are on the loopback interface of a temporary network namespace, maps and
programs end with their descriptors. Where the kernel is asked to move bytes, it is between these sockets.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from merbridge_lab.adapters import bpf_maps, bpf_program, bpf_syscall, netns
from merbridge_lab.adapters.change import change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_SENDER, _RECEIVER = 0, 1
_STREAM_VERDICT = 5
_SK_PASS = 1
_MSG_REDIRECT_HASH = 71
_SO_MEMINFO = 55
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
#: No call on a socket takes longer than this: a lost byte is a finding, not a hang.
PATIENCE = 0.5


@dataclass(frozen=True)
class Arrangement:
    """How bytes come to a reader: what is in the sockhash, and what was redirected before."""

    name: str
    is_hashed: bool = True
    is_redirected: bool = False
    has_verdict: bool = False
    #: The reader sent redirected bytes itself.
    has_sent: bool = False
    #: The reader was sent redirected bytes earlier, and has read them.
    is_switched: bool = False


TCP = Arrangement("TCP, in no sockhash", is_hashed=False)
HASHED = Arrangement("TCP, in a sockhash")
SENDER = Arrangement("TCP, to a socket whose own messages are redirected", has_sent=True)
SWITCHED = Arrangement("TCP, after redirected bytes", is_switched=True)
REDIRECTED = Arrangement("redirected", is_redirected=True)
VERDICT_TCP = Arrangement("TCP, through a verdict program", has_verdict=True)
VERDICT_SWITCHED = Arrangement(
    "TCP, after redirected bytes, through a verdict program", has_verdict=True, is_switched=True
)
VERDICT_REDIRECTED = Arrangement("redirected, with a verdict program", is_redirected=True, has_verdict=True)


class Sockhash:
    """A sockhash whose program redirects from its first socket into its second, or lets TCP have the message."""

    def __init__(self, stack: contextlib.ExitStack, *, has_verdict: bool) -> None:
        def kept(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        self._mode = kept(bpf_program.create_map(bpf_program.ARRAY, 4, 1))
        self._hash = kept(bpf_program.create_map(bpf_program.SOCKHASH, 8, 2))
        program = kept(bpf_program.load(bpf_syscall.PROG_SK_MSG, self._redirecting()))
        bpf_syscall.prog_attach(program, self._hash, bpf_syscall.SK_MSG_VERDICT)
        if has_verdict:
            passing = bpf_program.set_to(0, _SK_PASS) + bpf_program.EXIT
            verdict = kept(bpf_program.load(bpf_syscall.PROG_SK_SKB, passing))
            bpf_syscall.prog_attach(verdict, self._hash, _STREAM_VERDICT)

    def _redirecting(self) -> bytes:
        passing = bpf_program.set_to(0, _SK_PASS) + bpf_program.EXIT
        return b"".join(
            [
                bpf_program.copy(6, 1),
                bpf_program.load_value(1, self._mode),
                bpf_program.skip_unless(1, 0, len(passing) // 8),
                passing,
                bpf_program.store_word(-4, _RECEIVER),
                bpf_program.copy(1, 6),
                bpf_program.load_map(2, self._hash),
                bpf_program.copy(3, 10),
                bpf_program.add(3, -4),
                bpf_program.set_to(4, bpf_program.INGRESS),
                bpf_program.call_helper(_MSG_REDIRECT_HASH),
                bpf_program.EXIT,
            ]
        )

    def put(self, place: int, sock: socket.socket) -> None:
        """Put a socket into the hash."""
        bpf_maps.update(self._hash, struct.pack("=I", place), struct.pack("=Q", sock.fileno()))

    def redirect(self, *, on: bool) -> None:
        """Redirect what the first socket sends from now on, or do not."""
        bpf_maps.update(self._mode, struct.pack("=I", 0), struct.pack("=I", on))


class Pair:
    """A connection whose `reader` is put to the test; `send` sends to it, as arranged."""

    def __init__(self, stack: contextlib.ExitStack, arrangement: Arrangement) -> None:
        self.reader, self.writer = connected(stack)
        self._arrangement = arrangement
        self._sockhash: Sockhash | None = None
        if arrangement.is_hashed:
            self._sockhash = Sockhash(stack, has_verdict=arrangement.has_verdict)
            first, second = (self.reader, self.writer) if arrangement.has_sent else (self.writer, self.reader)
            self._sockhash.put(_SENDER, first)
            self._sockhash.put(_RECEIVER, second)
            if arrangement.has_sent:
                self._pass(self.reader, self.writer)
            elif arrangement.is_switched:
                self._pass(self.writer, self.reader)

    def _pass(self, sender: socket.socket, receiver: socket.socket) -> None:
        """Redirect a message, and read it."""
        self.send_redirected(b"before", sender)
        if receiver.recv(100) != b"before":
            raise OSError("a redirected message did not arrive")

    def send(self, data: bytes) -> None:
        """Send to the reader: redirected, or by TCP."""
        if self._arrangement.is_redirected:
            self.send_redirected(data, self.writer)
        else:
            self.writer.sendall(data)

    def answer(self, data: bytes, flags: int = 0) -> int:
        """Send from the reader as far as there is room, redirected if so arranged; return how much."""
        is_redirected = self._arrangement.has_sent and self._sockhash is not None
        if is_redirected and self._sockhash:
            self._sockhash.redirect(on=True)
        try:
            return self.reader.send(data, flags)
        finally:
            if is_redirected and self._sockhash:
                self._sockhash.redirect(on=False)

    def send_redirected(self, data: bytes, sender: socket.socket | None = None) -> None:
        """Send one redirected message."""
        assert self._sockhash is not None  # noqa: S101 - an arrangement without a sockhash redirects nothing
        self._sockhash.redirect(on=True)
        try:
            (sender or self.writer).sendall(data)
        finally:
            self._sockhash.redirect(on=False)


def connected(stack: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a new TCP connection on the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = stack.enter_context(socket.create_connection(listener.getsockname(), PATIENCE))
        accepted = stack.enter_context(listener.accept()[0])
    for each in (dialled, accepted):
        each.settimeout(PATIENCE)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return accepted, dialled


def pause(seconds: float) -> None:
    """Let the kernel finish what it does a moment later. This is not to wait for something: polling.py does that."""
    select.poll().poll(seconds * 1000)


@contextlib.contextmanager
def pair(arrangement: Arrangement) -> Iterator[Pair]:
    """Make a connection as arranged; it ends with the block. Raises OSError."""
    with contextlib.ExitStack() as stack:
        yield Pair(stack, arrangement)


def received_memory(sock: socket.socket) -> int:
    """Return what is charged to a socket for bytes that it has not read (sk_rmem_alloc)."""
    return int(struct.unpack_from("=I", sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[0])


def apart(work: Callable[[], T]) -> T:
    """Run `work` in a temporary network namespace with a loopback interface. Raises OSError, and what it raises."""

    def inside() -> T:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, change("set a loopback interface up"):
            fcntl.ioctl(asking, _SIOCSIFFLAGS, struct.pack("=16sh14x", b"lo", _IFF_UP))
        return work()

    return netns.run_in_new(inside)
