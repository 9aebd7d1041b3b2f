"""The content of the sockhashes and the programs on them: only the pods' own sockets, and no program but ours."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_maps, bpf_syscall, netlink_hooks, netns
from merbridge_lab.adapters.kernel_features import SOCKHASH_QUERY_SINCE
from merbridge_lab.dataplane import abi
from merbridge_lab.dataplane.inbound_listener import inbound_cookies
from merbridge_lab.dataplane.pins import Pins, number, opened
from merbridge_lab.dataplane.strangers import named
from merbridge_lab.evidence import Unread
from merbridge_lab.istio_facts import INBOUND_PORT
from merbridge_lab.polling import poll_until
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from merbridge_lab.dataplane.endpoints import Endpoint

#: How long a socket must look foreign to count as foreign, in seconds: sockets come and go.
_AT_REST = 0.1
#: Why it is not known which program is on a sockhash.
NOT_TOLD = f"Linux before {SOCKHASH_QUERY_SINCE} cannot report it"


def listener_key(cookie: int, slot: int) -> bytes:
    """Return where the listener of that number is registered, of the network namespace with that cookie.

    With more listeners than slots the last one is known, as in sockops.c.
    """
    return abi.layouts()["listener"].pack(netns=cookie, slot=min(slot, abi.constants()["LISTENERS"] - 1))


def listener_keys(listeners: int, cookie: int | None = None) -> list[bytes]:
    """Return the keys of `listeners`, of one network namespace if its cookie is given. Raises OSError."""
    if cookie is None:
        return bpf_maps.keys(listeners, abi.layouts()["listener"].size)
    slots = [listener_key(cookie, slot) for slot in range(abi.constants()["LISTENERS"])]
    return [key for key in slots if bpf_maps.lookup(listeners, key, 8) is not None]


def end_key(handshake: bytes, side: int) -> bytes:
    """Return the key in `peers` of one end of the connection that `pairs` has under `handshake`."""
    layout = abi.layouts()["end"]
    return (handshake + side.to_bytes(4, sys.byteorder)).ljust(layout.size, b"\0")


def connection_of(end: bytes) -> bytes:
    """Return the key in `pairs` of the connection of which `end` is a key in `peers`."""
    return end[: abi.layouts()["handshake"].size]


def listener_problem(pins: Pins, endpoint: Endpoint, cookie: int) -> str | None:
    """Describe that the sidecar of an endpoint is missing from the listeners, or that something else is in its place.

    Raise LabError if the kernel does not allow reading the sidecar's sockets.
    """
    try:
        with pins.open_map("listeners") as fd:
            # For a sockhash, a look-up returns the socket's cookie.
            told = [bpf_maps.lookup(fd, key, 8) for key in listener_keys(fd, cookie)]
    except OSError as error:
        return str(unread(f"the {INBOUND_PORT} listener registered for {endpoint.name}", error))
    registered = {number(raw) for raw in told if raw is not None}
    if not registered:
        return f"no {INBOUND_PORT} listener registered for {endpoint.name}"
    if endpoint.sidecar is not None and registered - inbound_cookies(endpoint.sidecar.pid, cookie):
        return f"the {INBOUND_PORT} listener registered for {endpoint.name} is not its sidecar's"
    return None


def redirects(program: int, peers: int) -> bool | None:
    """Report whether this sk_msg program, and no other, is on `peers`. Raises OSError.

    Return None before Linux 5.18, which does not report it.
    """
    try:
        attached = bpf_syscall.attached_progs(peers, bpf_syscall.SK_MSG_VERDICT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
    return attached == [bpf_syscall.prog_info(program).id]


def programs_problems(pins: Pins) -> list[str]:
    """Describe what is wrong with the programs on the sockhashes. Raises OSError."""
    found: list[str] = []
    with opened(pins.prog("sk_msg")) as program, pins.open_map("peers") as peers:
        own = bpf_syscall.prog_info(program).id
        told = redirects(program, peers)
        if told is None:
            return _by_elimination(own)
        if not told:
            found.append("sk_msg is not attached to peers")
    for name in ("peers", "listeners"):
        with pins.open_map(name) as table:
            kinds = bpf_syscall.SK_SKB_TYPES | ({} if name == "peers" else {bpf_syscall.SK_MSG_VERDICT: "sk_msg"})
            for kind, hook in kinds.items():
                found += [
                    f"on the sockhash {name} {hook} runs another program, {named(each)}"
                    for each in _attached(table, kind)
                ]
    return found


def _attached(table: int, kind: int) -> list[int]:
    try:
        return bpf_syscall.attached_progs(table, kind)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return []  # there can be only one of the two kinds of verdict programs: the other, which is also checked
        raise


def _by_elimination(own: int) -> list[str]:
    """Describe which programs may be on `peers`, if the kernel does not report it.

    It can only be ours if no other program of a suitable kind is loaded; our own counters show that ours is.
    """
    others = []
    for each in bpf_syscall.ids("prog"):
        try:
            fd = bpf_syscall.by_id("prog", each)
        except FileNotFoundError:
            continue  # gone meanwhile
        try:
            if bpf_syscall.prog_info(fd).type in (bpf_syscall.PROG_SK_MSG, bpf_syscall.PROG_SK_SKB) and each != own:
                others.append(each)
        finally:
            os.close(fd)
    return [str(Unread(f"whether {named(each)} is attached to the sockhash peers", NOT_TOLD)) for each in others]


def members_problems(pins: Pins, namespaces: Mapping[int, Path]) -> list[str]:
    """List the content of the sockhashes that is no socket of a pod; `namespaces` are those of the pods, by cookie.

    Raises OSError.
    """
    layout = abi.layouts()["listener"]
    with pins.open_map("listeners") as listeners:
        spaces = {layout.unpack(key)["netns"] for key in listener_keys(listeners)}
    strange = sorted(spaces - namespaces.keys())
    found = [f"a listener is registered for the network namespace {key}, which belongs to no pod" for key in strange]
    suspects = _suspects(pins, namespaces)
    if not suspects:
        return found
    found += [
        f"{_place(key)} holds another socket (cookie {cookie}) than the one that belongs there"
        for key, (cookie, noted) in suspects.items()
        if noted
    ]
    homeless = {key: cookie for key, (cookie, noted) in suspects.items() if not noted}
    try:
        for path in namespaces.values() if homeless else ():
            own = netns.run_inside(path, netlink_hooks.tcp_cookies)
            homeless = {key: cookie for key, cookie in homeless.items() if cookie not in own}
    except OSError as error:
        whose = f"the owner of {len(homeless)} sockets in the sockhash peers that belong to no connection"
        return [*found, str(unread(whose, error))]
    return found + [
        f"{_place(key)} holds a socket (cookie {cookie}) that belongs to no pod" for key, cookie in homeless.items()
    ]


def _place(key: bytes) -> str:
    end = abi.layouts()["end"].unpack(key)
    numbers = f"{end['handshake']['from_dialling']:x}/{end['handshake']['from_accepting']:x}"
    return f"the sockhash peers, for side {end['side']} of the connection with first sequence numbers {numbers},"


def _suspects(pins: Pins, namespaces: Iterable[int]) -> dict[bytes, tuple[int, bool]]:
    """Return the sockets in `peers`, by key, that are not the ones that our programs recorded in `pairs`.

    Return with each its cookie, and whether another one is recorded. A socket without a pair may still be a pod's: its
    other end was removed with its pod.
    """
    known = frozenset(namespaces)
    with pins.open_map("peers") as peers, pins.open_map("pairs") as pairs:
        found: dict[bytes, tuple[int, bool]] = {}
        for key in bpf_maps.keys(peers, abi.layouts()["end"].size):
            if (strange := _strange(peers, pairs, key, known)) is not None:
                found[key] = strange

        def have_gone() -> bool:
            for key, strange in list(found.items()):
                if _strange(peers, pairs, key, known) != strange:
                    del found[key]
            return not found

        poll_until(have_gone, timeout=_AT_REST, awaiting="connections that are being made or closed")
        return found


def _strange(peers: int, pairs: int, key: bytes, known: frozenset[int]) -> tuple[int, bool] | None:
    """Describe the socket under `key`; None if it is the one that its pair names."""
    raw = bpf_maps.lookup(peers, key, 8)
    if raw is None:
        return None  # closed meanwhile
    end, layout = abi.layouts()["end"].unpack(key), abi.layouts()["pair"]
    noted = bpf_maps.lookup(pairs, connection_of(key), layout.size) if end["side"] in (0, 1) else None
    cookie = number(raw)
    if noted is None:
        return cookie, False
    pair = layout.unpack(noted)
    is_own = pair["cookie"][end["side"]] == cookie and pair["netns"][end["side"]] in known
    return None if is_own else (cookie, True)
