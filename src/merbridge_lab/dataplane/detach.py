"""Detach the dataplane so that no connection that continues loses a byte.

A socket that is removed from `peers` silently loses what was redirected to it and not read yet. So the order is: stop
new redirects, detach the hooks, remove each socket only after it has read everything, then remove the pins.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from merbridge_lab.adapters import bpf_maps, bpf_syscall
from merbridge_lab.dataplane import abi, sockhash
from merbridge_lab.dataplane.pins import HOOKS, Pins, opened, unlink
from merbridge_lab.polling import poll_until

_HANDOVER = 0.5  # s for handshakes in progress to end
#: A send() that decided to redirect just before that was switched off may not have queued its bytes yet. If the kernel
#: shows that no system call is in progress on the sender, one check is proof; otherwise wait this long, in seconds.
_GRACE = 0.2

_THERE, UNREAD, _BUSY = 1, 2, 2  # the answer of bpf/unread.c: two bits, and a count from bit 2 on


@dataclass(frozen=True)
class Detached:
    """How many sockets returned to TCP, and how many still had redirected bytes to read at the timeout."""

    drained: int
    left: int


class _Drain:
    """Removes sockets from `peers`, each as soon as it has read what was redirected to it."""

    def __init__(self, peers: int, pairs: int, unread: int) -> None:
        self._peers, self._pairs, self._unread = peers, pairs, unread
        self._off_since = time.monotonic()
        self._quiet: set[bytes] = set()  # was idle once
        self.drained = 0

    def _ask(self, pair: dict[str, list[int]], side: int) -> int:
        return bpf_syscall.test_run(self._unread, (pair["sk"][side], pair["cookie"][side]))

    def _may_go(self, key: bytes, end: dict[str, int]) -> bool:
        layout = abi.layouts()["pair"]
        raw = bpf_maps.lookup(self._pairs, sockhash.connection_of(key), layout.size)
        if raw is None:
            return False  # reset during its handshake; it is removed when it is closed
        pair = layout.unpack(raw)
        # The sender first: it decided after the switch about everything that it queues after it was seen idle.
        sender = self._ask(pair, 1 - end["side"])
        receiver = self._ask(pair, end["side"])
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
        layout = abi.layouts()["end"]
        for key in bpf_maps.keys(self._peers, layout.size):
            if self._may_go(key, layout.unpack(key)):
                with contextlib.suppress(OSError):  # closed at this moment
                    self.drained += bpf_maps.delete(self._peers, key)
        return not self.left

    @property
    def left(self) -> int:
        """Return how many sockets are still in the hash."""
        return len(bpf_maps.keys(self._peers, abi.layouts()["end"].size))


def _being_made(pairs: int) -> bool:
    """Report whether any connection has been dialled and not been accepted yet."""
    layout = abi.layouts()["pair"]
    for key in bpf_maps.keys(pairs, abi.layouts()["handshake"].size):
        raw = bpf_maps.lookup(pairs, key, layout.size)
        if raw is not None and not layout.unpack(raw)["cookie"][1]:
            return True
    return False


def _drain(pins: Pins, timeout: float) -> Detached:
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        try:
            peers = stack.enter_context(pins.open_map("peers"))
            pairs = stack.enter_context(pins.open_map("pairs"))
            unread = stack.enter_context(opened(pins.prog("unread")))
        except OSError:
            # A crash while loading: nothing was attached yet. What cannot be opened for another reason cannot be
            # drained either, and taking the lab down must go on: nothing is proven by what is read here.
            return Detached(0, 0)
        poll_until(
            lambda: not _being_made(pairs),
            timeout=min(timeout, _HANDOVER),
            awaiting="connections that are being set up",
        )
        drain = _Drain(peers, pairs, unread)
        left = max(0.0, deadline - time.monotonic())
        poll_until(drain.turn, timeout=left, awaiting="live connections to read what was moved to them")
        return Detached(drain.drained, drain.left)


def detach(pins: Pins, timeout: float) -> Detached:
    """Detach and remove every pin; see Dataplane.detach."""
    with contextlib.suppress(OSError):
        pins.configure(redirect=0)
    last = ("sockops", "getsockopt")  # they finish what was begun, and keep the maps clean, while the rest drains
    for hook in reversed(HOOKS):
        if hook.name not in last:
            unlink(pins.link(hook.name))
    for pin in pins.lookup_links():
        unlink(pin)
    # We cannot read another version's structures: its sockets stay in its hash, which is correct, but slower.
    result = Detached(0, 0) if _is_foreign(pins) else _drain(pins, timeout)
    for name in last:
        unlink(pins.link(name))
    pins.remove_objects()
    return result


def _is_foreign(pins: Pins) -> bool:
    try:
        return pins.stamp() is not None and not pins.readable
    except OSError:
        return True  # whoever owns it, nobody can read it
