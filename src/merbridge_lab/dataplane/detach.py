"""Detach the dataplane so that no connection that continues loses a byte.

A socket that is removed from `peers` silently loses what was redirected to it and not read yet. So the order is: stop
new redirects, detach the hooks, remove each socket only after it has read everything, then remove the pins.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters import bpf_maps
from merbridge_lab.dataplane import abi, sockhash
from merbridge_lab.dataplane.draining import Drain
from merbridge_lab.dataplane.pins import HOOKS, Pins, opened, unlink
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_HANDOVER = 0.5  # s for handshakes in progress to end
#: They finish what was begun, and keep the maps clean, while the rest drains.
LAST = ("sockops", "getsockopt")
_ORDER = {hook.name: number for number, hook in enumerate(reversed(HOOKS))}


@dataclass(frozen=True)
class Detached:
    """How many sockets returned to TCP, and how many still had redirected bytes to read at the timeout."""

    drained: int
    left: int


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
        size, layout = abi.layouts()["end"].size, abi.layouts()["pair"]

        def pair_of(key: bytes) -> Mapping[str, Any] | None:
            raw = bpf_maps.lookup(pairs, sockhash.connection_of(key), layout.size)
            return None if raw is None else layout.unpack(raw)

        drain = Drain(peers, unread, lambda: bpf_maps.keys(peers, size), pair_of)
        left = max(0.0, deadline - time.monotonic())
        poll_until(drain.turn, timeout=left, awaiting="live connections to read what was moved to them")
        return Detached(drain.drained, drain.left)


def in_order(links: Iterable[Path]) -> list[Path]:
    """Sort the pins of links as they must be detached: what begins connections first, what finishes them last."""
    return sorted(links, key=lambda pin: (pin.name in LAST, _ORDER.get(pin.name, len(_ORDER))))


def detach(pins: Pins, timeout: float) -> Detached:
    """Detach and remove every pin; see Dataplane.detach."""
    with contextlib.suppress(OSError):
        pins.configure(redirect=0)
    for pin in in_order(pins.links()):
        if pin.name not in LAST:
            unlink(pin)
    # We cannot read another version's structures: its sockets stay in its hash, which is correct, but slower.
    result = Detached(0, 0) if _is_foreign(pins) else _drain(pins, timeout)
    for pin in in_order(pins.links()):
        unlink(pin)
    pins.remove_objects()
    return result


def _is_foreign(pins: Pins) -> bool:
    try:
        return pins.stamp() is not None and not pins.readable
    except OSError:
        return True  # whoever owns it, nobody can read it
