"""Find and remove what the maps hold for connections that are gone, and correct the counts of those that are not.

The programs remove what a connection leaves when it ends. They are not told of its end where another program has
replaced the flags of the socket (BPF_SOCK_OPS_STATE_CB), or while they are not attached.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from merbridge_lab.adapters import bpf_maps, bpf_syscall, netlink_hooks, netns
from merbridge_lab.dataplane import abi
from merbridge_lab.dataplane.map_entries import is_live
from merbridge_lab.dataplane.pins import Pins, number, opened
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

#: The key in `live` for the connections of all pods.
ALL = 0
#: What looks like garbage must look so twice, this many seconds apart.
_AT_REST = 0.1
_MASK = (1 << 64) - 1


class Collected(NamedTuple):
    """How many entries were removed, and by how much the counts of live connections were wrong."""

    pairs: int
    counts: int


def connections(pairs: int) -> dict[bytes, dict[str, Any]]:
    """Return the entries of the map `pairs`. Raises OSError."""
    layout = abi.layouts()["pair"]
    held = bpf_maps.entries(pairs, abi.layouts()["handshake"].size, layout.size)
    return {key: layout.unpack(raw) for key, raw in held.items()}


def sockets(namespaces: Mapping[int, Path]) -> set[int]:
    """Return the cookies of the TCP sockets of these network namespaces that have a connection. Raises OSError."""
    found: set[int] = set()
    for path in namespaces.values():
        found |= netns.run_inside(path, lambda: netlink_hooks.tcp_cookies(netlink_hooks.CONNECTED))
    return found


def remove(forget: int, key: bytes, pair: Mapping[str, Any]) -> bool:
    """Remove an entry of `pairs`, unless it has become another connection's. Raises OSError."""
    handshake = abi.layouts()["handshake"].unpack(key)
    return bool(bpf_syscall.test_run(forget, (handshake["from_dialling"], handshake["from_accepting"], pair["id"])))


def collect(pins: Pins, namespaces: Mapping[int, Path]) -> Collected:
    """Remove the entries of connections that are gone, and correct the counts; `namespaces` are the pods', by cookie.

    Connections that live are not touched, nor are those of other pods that are served; none waits. Raises OSError.
    """
    removed = corrected = 0
    others = pins.pods().keys() - namespaces.keys()

    def is_gone(pair: Mapping[str, Any], there: set[int]) -> bool:
        return not others & set(pair["netns"]) and not is_live(pair, namespaces, there)

    with pins.open_map("pairs") as pairs, pins.open_map("live") as live:
        counts, first = _counts(live), connections(pairs)
        # The entries before the sockets: a connection that is made meanwhile is in neither.
        there = sockets(namespaces) if first else set()
        gone = {key: pair["id"] for key, pair in first.items() if is_gone(pair, there)}
        if not gone and not any(_excess(counts, first).values()):
            return Collected(0, 0)
        _rest()
        with opened(pins.prog("forget")) as forget:
            second, there = connections(pairs), sockets(namespaces)
            for key, pair in second.items():
                if gone.get(key) == pair["id"] and is_gone(pair, there):
                    removed += remove(forget, key, pair)
        corrected = _correct(pins, (pairs, live), namespaces, others)
    return Collected(removed, corrected)


def has_count(pins: Pins, cookie: int) -> bool:
    """Report whether connections of a pod, and those of all, are counted: if not, none is made. Raises OSError."""
    with pins.open_map("live") as live:
        return {ALL, cookie} <= _counts(live).keys()


def _rest() -> None:
    begun = time.monotonic()
    poll_until(
        lambda: time.monotonic() - begun >= _AT_REST,
        timeout=2 * _AT_REST,
        awaiting="connections that are being made or closed",
    )


def _counts(live: int) -> dict[int, int]:
    return {
        number(key): int.from_bytes(value, sys.byteorder, signed=True)
        for key, value in bpf_maps.entries(live, 8, 8).items()
    }


def _ids(held: Mapping[bytes, Mapping[str, Any]], cookie: int) -> set[int]:
    return {pair["id"] for pair in held.values() if cookie in (ALL, pair["netns"][0])}


def _excess(counts: Mapping[int, int], held: Mapping[bytes, Mapping[str, Any]]) -> dict[int, int]:
    """Return by how much each count is higher than there are connections."""
    return {cookie: count - len(_ids(held, cookie)) for cookie, count in counts.items()}


def _correct(pins: Pins, maps: tuple[int, int], namespaces: Mapping[int, Path], others: Iterable[int]) -> int:
    """Correct the counts of the pods where no connection was made or closed for a moment, and the one of all pods.

    Whether one is being made in the `others` is not known.
    """
    corrected = 0
    pairs, live = maps
    counts, first = _counts(live), connections(pairs)
    _rest()
    later, second = _counts(live), connections(pairs)
    dialling = set(others) | {
        cookie
        for cookie, path in namespaces.items()
        if netns.run_inside(path, lambda: netlink_hooks.tcp_cookies(netlink_hooks.SYN_SENT))
    }
    with opened(pins.prog("release")) as release:
        for cookie, excess in _excess(later, second).items():
            is_quiet = counts.get(cookie) == later[cookie] and _ids(first, cookie) == _ids(second, cookie)
            if excess and is_quiet and not (dialling if cookie == ALL else cookie in dialling):
                bpf_syscall.test_run(release, (cookie, excess & _MASK))
                corrected += abs(excess)
    return corrected
