"""What the maps hold for each connection, and whether these connections exist: foreign entries could fill them up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters import bpf_maps, bpf_syscall, netlink_hooks, netns
from merbridge_lab.dataplane import abi
from merbridge_lab.dataplane.pins import Pins, number
from merbridge_lab.polling import poll_until
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

#: How long an entry must look foreign to count as foreign, in seconds: connections come and go all the time.
_AT_REST = 0.1
#: With more entries than this, not each one is checked: no lab has so many connections.
_MANY = 20000


def problems(pins: Pins, namespaces: Mapping[int, Path]) -> list[str]:
    """Describe, for each map, its entries that belong to no connection; `namespaces` are those of the pods, by cookie.

    Raises OSError.
    """
    with pins.open_map("counters") as counters:
        strange = [key for key in map(number, bpf_maps.keys(counters, 8)) if key not in namespaces]
    found = [_sentence("counters", len(strange), "for network namespaces that belong to no pod")] if strange else []
    with pins.open_map("pairs") as pairs:
        return [*found, *_of_connections(pairs, namespaces)]


def _sentence(name: str, how_many: int, what: str) -> str:
    least = "at least " if how_many >= _MANY else ""
    return f"the map {name} holds {least}{how_many} {'entries' if how_many > 1 else 'entry'} {what}"


def _of_connections(pairs: int, namespaces: Mapping[int, Path]) -> list[str]:
    found = []
    live: set[int] = set()

    def of_no_connection(key: bytes) -> bool:
        raw = bpf_maps.lookup(pairs, key, abi.layouts()["pair"].size)
        return raw is not None and not is_live(abi.layouts()["pair"].unpack(raw), namespaces, live)

    keys = bpf_maps.keys(pairs, abi.layouts()["handshake"].size)
    if keys:
        try:
            for path in namespaces.values():
                live |= netns.run_inside(path, netlink_hooks.tcp_cookies)
        except OSError as error:
            return [str(unread(f"to which connections the {len(keys)} entries of the map pairs belong", error))]
    room = bpf_syscall.map_info(pairs).max_entries
    if strange := _staying(keys[:_MANY], of_no_connection):
        full = f", and has no room for more than {room}" if len(keys) >= room else ""
        found.append(_sentence("pairs", len(strange), f"that belong to no connection of the pods{full}"))
    return found


def is_live(pair: Mapping[str, Any], namespaces: Collection[int], live: Collection[int]) -> bool:
    """Report whether an entry of `pairs` is of pods, and one of its sockets is among the `live` ones, by cookie."""
    ends = [(space, cookie) for space, cookie in zip(pair["netns"], pair["cookie"], strict=True) if cookie]
    return bool(ends) and all(space in namespaces for space, _ in ends) and any(cookie in live for _, cookie in ends)


def _staying(keys: list[bytes], is_strange: Callable[[bytes], bool]) -> list[bytes]:
    """Return those that are foreign and stay so for a moment."""
    found = [key for key in keys if is_strange(key)]

    def have_gone() -> bool:
        found[:] = [key for key in found if is_strange(key)]
        return not found

    if found:
        poll_until(have_gone, timeout=_AT_REST, awaiting="connections that are being made or closed")
    return found
