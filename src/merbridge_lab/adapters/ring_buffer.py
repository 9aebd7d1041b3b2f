"""A BPF ring buffer (BPF_MAP_TYPE_RINGBUF, Linux 5.8) and its one reader, through bpf(2), mmap(2) and poll(2).

The kernel documents the layout in Documentation/bpf/ringbuf.rst and kernel/bpf/ringbuf.c: a page that the reader
writes (its position), a page that the kernel writes (its position), and the data, twice in a row, so that no record is
cut at the end. A record begins with 8 bytes: its length, whose two highest bits are flags, and a page offset.

Every function raises OSError with the kernel's errno and a text that names what was tried.
"""

from __future__ import annotations

import mmap
import os
import select
import struct

from merbridge_lab.adapters import bpf_syscall

_RINGBUF = 27
_HEADER = 8
#: Flags of a record's length: it is being written; it was given up.
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_PAGE = mmap.PAGESIZE


def create(size: int, name: str) -> int:
    """Create a ring buffer of `size` bytes, a power of two and of whole pages; the caller closes the descriptor."""
    attributes = struct.pack("=IIIIIII16s", _RINGBUF, 0, 0, size, 0, 0, 0, name.encode())
    return bpf_syscall.call(bpf_syscall.MAP_CREATE, attributes, "create a ring buffer")[0]


class RingBuffer:
    """A ring buffer of this process: programs write into it, and nobody else reads it."""

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self.fd = create(size, name)
        try:
            self._own = mmap.mmap(self.fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            self._kernels = mmap.mmap(self.fd, _PAGE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE)
        except BaseException:
            os.close(self.fd)
            raise
        # Views of whole words: these are read and written at once, never byte by byte.
        self._read = memoryview(self._own).cast("Q")
        self._written = memoryview(self._kernels).cast("Q")
        self._lengths = memoryview(self._kernels).cast("I")
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def take(self, timeout: float) -> list[bytes]:
        """Return the records that are complete, in the order of their writing; wait up to `timeout` seconds for one.

        They are removed, which makes room. Loads are not reordered on x86_64, which is what merlab runs on; elsewhere,
        a position that is read early makes a record come one call later.
        """
        at = self._read[0]
        if timeout > 0 and at == self._written[0]:
            self._poll.poll(timeout * 1000)
        found, end = [], self._written[0]
        while at < end:
            place = _PAGE + (at & (self.size - 1))
            length = self._lengths[place // 4]
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED:
                found.append(self._kernels[place + _HEADER : place + _HEADER + size])
            at += (size + _HEADER + 7) & ~7
        self._read[0] = at
        return found

    def close(self) -> None:
        """End reading; the buffer goes when no map holds it."""
        for view in (self._read, self._written, self._lengths):
            view.release()
        self._own.close()
        self._kernels.close()
        os.close(self.fd)
