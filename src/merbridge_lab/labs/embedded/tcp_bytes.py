"""Which bytes of a request really went by TCP, as the kernel's TCP reports it for every connection on its path.

The dataplane's counters hold what its programs wrote there. This module finds a program that counts and does not
redirect. Of everything that the kernel counts (Tcp: and TcpExt: of a namespace, the bytes over its links), only this is
exact: it is reported per socket, so nobody else's traffic is in it; and only payload counts, no header, SYN or FIN.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from merbridge_lab.adapters.tcp_bytes import Watch
from merbridge_lab.evidence import Unread, UnreadError
from merbridge_lab.polling import poll_until
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from merbridge_lab.accesslog import AccessLogLine
    from merbridge_lab.adapters.tcp_bytes import Sent
    from merbridge_lab.observation import Exchange

#: How long the kernel may take to report a socket that ended, in seconds; it takes milliseconds.
_TOLD = 3.0


class _End(NamedTuple):
    """One end of a connection: its namespace, and which of its addresses identifies it."""

    where: str
    is_local: bool
    address: str


@contextlib.contextmanager
def watching(namespaces: Mapping[str, Path]) -> Iterator[Mapping[str, Watch] | Unread]:
    """Watch the TCP sockets of workloads, by name, for the duration of the block."""
    with contextlib.ExitStack() as stack:
        watches: dict[str, Watch] = {}
        missing = None
        for name, path in namespaces.items():
            try:
                watches[name] = stack.enter_context(contextlib.closing(Watch(path)))
            except OSError as error:
                missing = unread(f"sock_diag:{name}", error)
        yield missing or watches


def read(
    watches: Mapping[str, Watch] | Unread,
    client: str,
    exchanges: Sequence[Exchange],
    mine: Mapping[str, AccessLogLine],
    theirs: Mapping[str, tuple[str, AccessLogLine]],
) -> dict[str, dict[str, tuple[int, int]]]:
    """Return, by nonce and leg, how many bytes the dialling and the accepting end gave to TCP.

    The legs are those that the sidecars recorded. Raise UnreadError if the kernel reports nothing about an end.
    """
    if isinstance(watches, Unread):
        raise UnreadError(watches)
    wanted = {exchange.nonce: dict(_legs(client, exchange, mine, theirs)) for exchange in exchanges}
    ends = {end for legs in wanted.values() for pair in legs.values() for end in pair if end is not None}
    found: dict[_End, int] = {}

    def have_been_told() -> bool:
        seen = {name: watch.look() for name, watch in watches.items()}
        for end in ends:
            if (sent := _sent(seen[end.where], end)) is not None:
                found[end] = sent
        return found.keys() == ends

    try:
        poll_until(have_been_told, timeout=_TOLD, awaiting="the kernel to report the batch's connections")
    except OSError as error:
        raise UnreadError(unread("sock_diag", error)) from error
    if missing := sorted(ends - found.keys()):
        end = missing[0]
        raise UnreadError(Unread(f"sock_diag:{end.where}", f"the kernel reports no connection of {end.address}"))

    def sent_by(end: _End | None) -> int:
        return 0 if end is None else found[end]

    return {
        nonce: {leg: (sent_by(one), sent_by(other)) for leg, (one, other) in legs.items()}
        for nonce, legs in wanted.items()
    }


def _legs(
    client: str,
    exchange: Exchange,
    mine: Mapping[str, AccessLogLine],
    theirs: Mapping[str, tuple[str, AccessLogLine]],
) -> Iterator[tuple[str, tuple[_End | None, _End | None]]]:
    """Return the two ends of the connection of each leg; without a sidecar's record, only one leg is known."""
    if exchange.local.endswith(":0"):
        return  # it never dialled
    outbound, delivered = mine.get(exchange.nonce), theirs.get(exchange.nonce)
    near = _End(client, is_local=True, address=exchange.local)
    yield "outbound", (near, _End(client, is_local=False, address=outbound.downstream_remote) if outbound else None)
    if outbound is None or delivered is None:
        return
    server, record = delivered
    yield (
        "mesh",
        (
            _End(client, is_local=True, address=outbound.upstream_local),
            _End(server, is_local=False, address=record.downstream_remote),
        ),
    )
    yield (
        "inbound",
        (
            _End(server, is_local=True, address=record.upstream_local),
            _End(server, is_local=False, address=record.upstream_local),
        ),
    )


def _sent(seen: Sequence[Sent], end: _End) -> int | None:
    return next((each.sent for each in seen if (each.local if end.is_local else each.remote) == end.address), None)
