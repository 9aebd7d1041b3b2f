"""What a program sees that uses a socket: for each way of reading, and some of sending, one short answer.

The same question is put to a socket in no sockhash; a difference is what the sockhash, or
redirecting, does to programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import threading
from typing import TYPE_CHECKING

from merbridge_lab.dataplane.probe_sockets import PATIENCE, pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.dataplane.probe_sockets import Pair

_LIBC = ctypes.CDLL(None, use_errno=True)
_DATA = bytes(range(250)) * 4
_HALF = len(_DATA) // 2
#: Long enough that an answer "not yet" is no accident; MSG_WAITALL's second half comes after it.
_SHORTLY = 0.02
#: More than the buffers of a connection hold.
_PLENTY, _CHUNK = 32 << 20, 65536
_SO_ZEROCOPY, _MSG_ZEROCOPY = 60, 0x4000000


def is_readable(sock: socket.socket, seconds: float = PATIENCE) -> bool:
    """Report whether poll() calls a socket readable within this time."""
    asking = select.poll()
    asking.register(sock, select.POLLIN)
    return bool(asking.poll(seconds * 1000))


def unread(sock: socket.socket) -> int:
    """Return how many bytes FIONREAD counts."""
    return int(struct.unpack("=i", fcntl.ioctl(sock, termios.FIONREAD, b"\0" * 4))[0])


def _fionread(pair: Pair) -> str:
    pair.send(_DATA)
    readable = is_readable(pair.reader)
    return f"{unread(pair.reader)} of {len(_DATA)}" if readable else "never readable"


def _peek(pair: Pair) -> str:
    pair.send(_DATA)
    first = pair.reader.recv(_HALF, socket.MSG_PEEK)
    then = _read(pair.reader, len(_DATA))
    return "the same bytes again" if first == _DATA[:_HALF] and then == _DATA else f"{len(first)}, then {len(then)}"


def _splice(pair: Pair) -> str:
    pair.send(_DATA)
    if not is_readable(pair.reader):
        return "never readable"
    into, out = os.pipe()
    try:
        # SPLICE_F_NONBLOCK concerns the pipe alone; the socket has to be non-blocking itself.
        pair.reader.setblocking(False)
        return f"{os.splice(pair.reader.fileno(), out, 2 * len(_DATA))} bytes"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    finally:
        os.close(into)
        os.close(out)


def _wait_for_all(pair: Pair) -> str:
    def send_rest() -> None:
        with contextlib.suppress(OSError):
            pair.send(_DATA[_HALF:])

    pair.send(_DATA[:_HALF])
    _block_with_limit(pair.reader, PATIENCE)
    later = threading.Timer(_SHORTLY, send_rest)
    later.start()
    try:
        got = pair.reader.recv(len(_DATA), socket.MSG_WAITALL)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    finally:
        later.join()
    return f"{len(got)} of {len(_DATA)}" if got == _DATA[: len(got)] else "other bytes"


def _low_water(pair: Pair) -> str:
    pair.reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(_DATA))
    pair.send(_DATA[:_HALF])
    below = is_readable(pair.reader, _SHORTLY)
    pair.send(_DATA[_HALF:])
    at = is_readable(pair.reader)
    return f"{'readable' if below else 'not readable'} below the mark, {'readable' if at else 'not readable'} at it"


def _truncate(pair: Pair) -> str:
    """Discard bytes by a recv() without a buffer, which only TCP's MSG_TRUNC allows."""
    pair.send(_DATA)
    if not is_readable(pair.reader):
        return "never readable"
    gone = int(_LIBC.recv(pair.reader.fileno(), None, ctypes.c_size_t(_HALF), socket.MSG_TRUNC | socket.MSG_DONTWAIT))
    if gone < 0:
        return errno.errorcode.get(ctypes.get_errno(), str(ctypes.get_errno()))
    return f"{gone} discarded, {len(_read(pair.reader, len(_DATA) - gone))} left"


def _blocked(pair: Pair) -> str:
    """Wait for bytes in one thread while sends of the same socket fill its buffer: the room that comes wakes both."""
    got: list[str] = []

    def wait() -> None:
        try:
            got.append(f"{len(pair.reader.recv(len(_DATA)))} bytes")
        except OSError as error:
            got.append(errno.errorcode.get(error.errno or 0, str(error)))

    _block_with_limit(pair.reader, 10)
    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        pause(_SHORTLY)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < _PLENTY:
                sent += pair.reader.send(bytes(_CHUNK), socket.MSG_DONTWAIT)
        while sent:
            sent -= len(pair.writer.recv(min(sent, _CHUNK)))
        pause(_SHORTLY)
        pair.send(_DATA)
    finally:
        waiting.join()
    return got[0]


def _zero_copy(pair: Pair) -> str:
    """Send without a copy, and wait for the word that the memory is free again."""
    pair.reader.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
    pair.answer(bytes(_CHUNK), _MSG_ZEROCOPY)
    _read(pair.writer, _CHUNK)
    asking = select.poll()
    asking.register(pair.reader, 0)
    return "completed" if asking.poll(PATIENCE * 1000) else "never completed"


def _block_with_limit(sock: socket.socket, seconds: float) -> None:
    """Make a socket blocking, with a limit of the kernel's own: Python's would make it non-blocking."""
    sock.setblocking(True)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))


def _read(sock: socket.socket, count: int) -> bytes:
    """Read this many bytes, or what there is."""
    got = b""
    with contextlib.suppress(TimeoutError):
        while len(got) < count and (chunk := sock.recv(2 * count)):
            got += chunk
    return got


#: The ways of reading and sending, by the name that a programmer knows.
READERS: dict[str, Callable[[Pair], str]] = {
    "FIONREAD": _fionread,
    "MSG_PEEK": _peek,
    "splice": _splice,
    "MSG_WAITALL": _wait_for_all,
    "SO_RCVLOWAT": _low_water,
    "MSG_TRUNC": _truncate,
    "recv() beside send()": _blocked,
    "MSG_ZEROCOPY": _zero_copy,
}
