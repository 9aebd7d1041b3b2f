"""Detach one pod, and no other: its links, what the maps hold for it, its sockets.

The order is that of detach.py. The pod may be gone: everything is found by its uid, in the pins and in the map `pods`,
whose entry goes after all others of the pod, so that this can be repeated after it was killed.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from merbridge_lab.adapters import bpf_maps, bpf_syscall
from merbridge_lab.dataplane import abi, garbage, interception_lists, sockhash
from merbridge_lab.dataplane.detach import in_order
from merbridge_lab.dataplane.draining import UNREAD, Drain
from merbridge_lab.dataplane.pins import number, opened, remove_folder, u64, unlink
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

    from merbridge_lab.dataplane.pins import Pins

#: For handshakes in progress to end, in seconds.
_HANDOVER = 0.1
#: For the sockets of a living pod to read what was redirected to them, in seconds.
_DRAIN = 0.5
#: Counts connections down when they end.
_COUNTS = "sockops"
#: The last one to be detached: an app must always learn the original destination of what was intercepted.
_LAST = "getsockopt"


class _End(NamedTuple):
    """A socket of the pod: the connection that it belongs to, and its cookie."""

    pair: dict[str, Any]
    cookie: int


def forget(pins: Pins, uid: str) -> None:
    """Detach the pod, and remove all that is kept for it; succeed if it is not served. Raises OSError.

    If the maps are another version's, only the links are ours to detach.
    """
    links = in_order(pins.links_of(uid).iterdir()) if uid in pins.uids() else []
    is_alive = any(map(_has_target, links))
    pods = pins.pods() if pins.readable else {}
    cookies = [cookie for cookie, pod in pods.items() if pod["id"] == uid]
    _detach(links, lambda hook: hook not in (_COUNTS, _LAST))
    for cookie in cookies:
        _leave_addresses(pins, cookie)
    if is_alive and cookies:
        poll_until(
            lambda: not _are_dialling(pins, cookies),
            timeout=_HANDOVER,
            awaiting="connections of the pod that are being set up",
        )
    _detach(links, lambda hook: hook != _LAST)
    for cookie in cookies:
        _remove_connections(pins, cookie, _DRAIN if is_alive else 0)
        _remove_entries(pins, cookie)
    _detach(links, lambda _: True)
    if uid in pins.uids():
        remove_folder(pins.links_of(uid))


def _detach(links: Iterable[Path], is_due: Callable[[str], bool]) -> None:
    for pin in links:
        if is_due(pin.name):
            unlink(pin)


def _has_target(pin: Path) -> bool:
    """Report whether what a link is attached to is still there: if not, the pod is gone."""
    try:
        with opened(pin) as link:
            return bpf_syscall.link_info(link).target != 0
    except OSError:
        return False


def _leave_addresses(pins: Pins, cookie: int) -> None:
    """Remove the address of the pod, unless another one has it by now."""
    layout, wanted = abi.layouts()["place"], u64(cookie)
    at = layout.offset("netns")
    with pins.open_map("pod_ips") as table:
        for key, raw in bpf_maps.entries(table, 4, layout.size).items():
            if raw[at : at + len(wanted)] == wanted:
                bpf_maps.delete(table, key)


def _are_dialling(pins: Pins, cookies: Collection[int]) -> bool:
    """Report whether one has been dialled there that nobody has accepted yet."""
    with pins.open_map("pairs") as pairs:
        return any(
            pair["netns"][0] in cookies and not pair["cookie"][1] for pair in garbage.connections(pairs).values()
        )


def _remove_connections(pins: Pins, cookie: int, timeout: float) -> None:
    """Remove the connections of a pod: what they still send goes by TCP.

    If the pod is gone, its sockets may take minutes to end, because nobody acknowledges their last bytes. Somebody may
    also hold them, and then they are no pod's. So they leave `peers` as well, if nothing that was redirected to them is
    left to read.
    """
    gone: dict[bytes, _End] = {}
    with pins.open_map("pairs") as pairs, opened(pins.prog("forget")) as program:
        for key, pair in garbage.connections(pairs).items():
            if cookie in pair["netns"]:
                garbage.remove(program, key, pair)
                gone |= {
                    sockhash.end_key(key, side): _End(pair, pair["cookie"][side])
                    for side in (0, 1)
                    if pair["netns"][side] == cookie
                }
    if not gone:
        return
    with pins.open_map("peers") as peers, opened(pins.prog("unread")) as unread:

        def there() -> list[bytes]:
            held = {key: bpf_maps.lookup(peers, key, 8) for key in gone}
            return [key for key, raw in held.items() if raw is not None and number(raw) == gone[key].cookie]

        drain = Drain(peers, unread, there, lambda key: gone[key].pair)
        if timeout:
            poll_until(drain.turn, timeout=timeout, awaiting="live connections to read what was moved to them")
        for key in there() if not timeout else ():
            side = abi.layouts()["end"].unpack(key)["side"]
            if not bpf_syscall.test_run(unread, (gone[key].pair["sk"][side], gone[key].cookie)) & UNREAD:
                with contextlib.suppress(OSError):  # closed meanwhile
                    bpf_maps.delete(peers, key)


def _remove_entries(pins: Pins, cookie: int) -> None:
    """Remove what the maps hold for the network namespace of a pod without links. Raises OSError."""
    _leave_addresses(pins, cookie)
    with pins.open_map("listeners") as table:
        for key in sockhash.listener_keys(table, cookie):
            with contextlib.suppress(OSError):
                bpf_maps.delete(table, key)
    interception_lists.remove(pins, cookie)
    with pins.open_map("live") as live, opened(pins.prog("release")) as release:
        raw = bpf_maps.lookup(live, u64(cookie), 8)
        # What is left here was dialled and has not been established; nobody counts it down any more.
        if raw is not None and (left := int.from_bytes(raw, sys.byteorder, signed=True)) > 0:
            bpf_syscall.test_run(release, (garbage.ALL, left))
    for name in ("counters", "live", "pods"):
        with pins.open_map(name) as table, contextlib.suppress(OSError):
            bpf_maps.delete(table, u64(cookie))


def sweep(pins: Pins) -> None:
    """Remove the entries of network namespaces that are of no pod. Raises OSError."""
    known = pins.pods().keys()
    for cookie in _cookies(pins) - known - {garbage.ALL}:
        _remove_connections(pins, cookie, 0)
        _remove_entries(pins, cookie)


def _cookies(pins: Pins) -> set[int]:
    """Return the cookies of all network namespaces that the maps hold something for."""
    layouts = abi.layouts()
    found = set(interception_lists.cookies(pins))
    with pins.open_map("listeners") as table:
        found |= {layouts["listener"].unpack(key)["netns"] for key in sockhash.listener_keys(table)}
    with pins.open_map("pod_ips") as table:
        places = bpf_maps.entries(table, 4, layouts["place"].size).values()
        found |= {layouts["place"].unpack(raw)["netns"] for raw in places}
    for name in ("counters", "live"):
        with pins.open_map(name) as table:
            found |= set(map(number, bpf_maps.keys(table, 8)))
    return found
