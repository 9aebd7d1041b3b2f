"""Take sockets out of `peers` without losing a byte: each as soon as it has read what was redirected to it.

Before, nothing may be redirected to them any more: see detach.py and detach_pod.py.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters import bpf_maps, bpf_syscall
from merbridge_lab.dataplane import abi

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

#: A send() that decided to redirect just before that was switched off may not have queued its bytes yet. If the kernel
#: shows that no system call is in progress on the sender, one check is proof; otherwise wait this long, in seconds.
_GRACE = 0.2

_THERE, UNREAD, _BUSY = 1, 2, 2  # the answer of bpf/unread.c: two bits, and a count from bit 2 on


class Drain:
    """Removes sockets from `peers`, each as soon as it has read what was redirected to it.

    `keys` tells which are still to go; `pair_of` the connection that a key in `peers` is an end of, if it is known.
    """

    def __init__(
        self,
        peers: int,
        unread: int,
        keys: Callable[[], Collection[bytes]],
        pair_of: Callable[[bytes], Mapping[str, Any] | None],
    ) -> None:
        self._peers, self._unread = peers, unread
        self._keys, self._pair_of = keys, pair_of
        self._off_since = time.monotonic()
        self._quiet: set[bytes] = set()  # was idle once
        self.drained = 0

    def _ask(self, pair: Mapping[str, Any], side: int) -> int:
        return bpf_syscall.test_run(self._unread, (pair["sk"][side], pair["cookie"][side]))

    def _may_go(self, key: bytes) -> bool:
        pair = self._pair_of(key)
        if pair is None:
            return False  # reset during its handshake; it is removed when it is closed
        side = abi.layouts()["end"].unpack(key)["side"]
        # The sender first: it decided after the switch about everything that it queues after it was seen idle.
        sender = self._ask(pair, 1 - side)
        receiver = self._ask(pair, side)
        if receiver & UNREAD or not receiver & _THERE:
            self._quiet.discard(key)
            return False
        if sender >> _BUSY == 0:
            return True
        if time.monotonic() - self._off_since < _GRACE:
            return False
        if key in self._quiet:
            return True
        self._quiet.add(key)
        return False

    def turn(self) -> bool:
        """Check every socket once; return True when none is left."""
        for key in self._keys():
            if self._may_go(key):
                with contextlib.suppress(OSError):  # closed at this moment
                    self.drained += bpf_maps.delete(self._peers, key)
        return not self.left

    @property
    def left(self) -> int:
        """Return how many sockets are still in the hash."""
        return len(self._keys())
