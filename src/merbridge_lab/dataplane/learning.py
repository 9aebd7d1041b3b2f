"""Learn the address of woken_wake_function() where the kernel hides it: from a blocked reader of our own.

The reader is a thread that waits for a byte on a connection in a network namespace of its own; see bpf/learn.c.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_maps, bpf_program, bpf_syscall
from merbridge_lab.dataplane import abi, probe_sockets
from merbridge_lab.dataplane.pins import u64
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

#: How long the reader may take to fall asleep, in seconds.
_PATIENCE = 1.0


def learn(program: int, kernel: int) -> int:
    """Run `program` (merlab_learn) until the map `kernel` has the address; return it, or 0. Raises OSError."""
    layout = abi.layouts()["kernel"]

    def learnt() -> int:
        return int(layout.unpack(bpf_maps.lookup(kernel, bytes(4), layout.size) or bytes(layout.size))["woken"])

    with contextlib.ExitStack() as stack:
        reader, other = probe_sockets.apart(lambda: probe_sockets.connected(stack))
        table = bpf_program.create_map(bpf_program.SOCKHASH, 8, 1)
        stack.callback(os.close, table)
        bpf_syscall.prog_attach(program, table, bpf_syscall.SK_MSG_VERDICT)
        bpf_maps.update(table, bytes(4), u64(reader.fileno()))
        with _reading(reader, other):

            def asked() -> bool:
                reader.send(b"?")
                return learnt() != 0

            poll_until(asked, timeout=_PATIENCE, awaiting="a reader to fall asleep")
    return learnt()


@contextlib.contextmanager
def _reading(reader: socket.socket, other: socket.socket) -> Iterator[None]:
    """Let a thread wait for a byte on `reader` during the block; then send it one from `other`."""
    reader.setblocking(True)
    thread = threading.Thread(target=reader.recv, args=(1,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        other.send(b"!")
        thread.join(probe_sockets.PATIENCE)
