"""The path of a request as a value: what carries each of its three legs, in a word, and how much of it was counted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from merbridge_lab.checks import dataplane
from merbridge_lab.checks.rules import REDIRECT
from merbridge_lab.evidence import Unread, assess, value_of

if TYPE_CHECKING:
    from collections.abc import Sized

    from merbridge_lab.observation import Observation

_KILO = 1000


class Carrier(str, Enum):
    """What carries a leg: the rules, eBPF, plain TCP between the right ends; or nothing does, as it should."""

    RULES = "rules"
    EBPF = "eBPF"
    TCP = "TCP"
    PLAIN = "plain"
    BROKEN = "broken"
    UNKNOWN = "not read"


@dataclass(frozen=True)
class LegView:
    """One leg: app to sidecar, sidecar to sidecar, sidecar to app. `count` is what was counted, in a few words."""

    carrier: Carrier
    count: str = ""

    def __str__(self) -> str:
        return f"{self.carrier.value} {self.count}".rstrip()


@dataclass(frozen=True)
class RequestPath:
    """The path from the app of `client` to the app of `servers`, by three legs."""

    client: str
    servers: tuple[str, ...]
    legs: tuple[LegView, LegView, LegView]
    #: The bytes that eBPF moved on all legs together, in words; "" if that is not known.
    moved: str = ""
    #: Whether it follows from what is in place; else requests went this way.
    expected: bool = False


def observed(seen: Observation) -> RequestPath:
    """Return the path of a batch of requests, with counts."""
    total = len(seen.exchanges)
    answered = sum(exchange.served for exchange in seen.exchanges)
    by_client, by_servers = _size(seen.client_log), _size(seen.server_log)
    servers = () if isinstance(seen.server_log, Unread) else tuple(sorted(seen.servers))
    if by_client is None or by_servers is None:
        unknown = LegView(Carrier.UNKNOWN)
        return RequestPath(seen.client, servers, (unknown, unknown, unknown))
    if not by_client and not by_servers:
        carrier = Carrier.PLAIN if answered else Carrier.BROKEN
        leg = LegView(carrier, f"{answered} of {total}")
        return RequestPath(seen.client, servers, (leg, leg, leg))
    if isinstance(seen.interception.moved, Unread) or isinstance(seen.interception.app.intercepted, Unread):
        unknown = LegView(Carrier.UNKNOWN)
        return RequestPath(seen.client, servers, (unknown, unknown, unknown))
    payload = assess(dataplane.assess_payload, seen)
    ebpf = Carrier.EBPF if payload.held else Carrier.TCP
    served = {leg.name for leg in seen.interception.served} if payload.held else set()
    moved = seen.interception.app.intercepted.moved
    rules = seen.rule(REDIRECT).moved
    if moved >= total:
        out = LegView(Carrier.EBPF, f"{total} of {total} (rules {rules:+})")
    else:
        out = LegView(Carrier.RULES if rules >= total else Carrier.UNKNOWN, f"{by_client} of {total}")
    # Sidecars name the service in their TLS handshake; without TLS there is no such name.
    tls = all(line.sni.startswith("outbound_") for _, line in value_of(seen.server_log).values())
    mesh = LegView(ebpf if "mesh" in served else Carrier.TCP, f"{by_servers} of {total}{', mTLS' if tls else ''}")
    into = LegView(ebpf if "inbound" in served else Carrier.TCP, f"{answered} of {total}")
    return RequestPath(seen.client, servers, (out, mesh, into), _bytes(seen) if payload.held else "")


def expected(
    client: str,
    servers: tuple[str, ...],
    *,
    rules: bool | None,
    server_rules: bool | None,
    attached: bool | None,
    moves_for_apps: bool = True,
) -> RequestPath:
    """Return the path that a new request takes now, from what is in place; None is what could not be read.

    `moves_for_apps` says whether eBPF moves messages between apps and their own sidecars; it intercepts their
    connections in any case.
    """
    if attached is None or (not attached and (rules is None or server_rules is None)):
        unknown = LegView(Carrier.UNKNOWN)
        return RequestPath(client, servers, (unknown, unknown, unknown), expected=True)
    out = Carrier.EBPF if attached else Carrier.RULES if rules else Carrier.PLAIN
    rest = Carrier.EBPF if attached else Carrier.TCP
    if out is Carrier.PLAIN:
        rest = Carrier.BROKEN if server_rules else Carrier.PLAIN
    into = Carrier.TCP if rest is Carrier.EBPF and not moves_for_apps else rest
    return RequestPath(client, servers, (LegView(out), LegView(rest), LegView(into)), expected=True)


def _size(log: Sized | Unread) -> int | None:
    return None if isinstance(log, Unread) else len(log)


def _bytes(seen: Observation) -> str:
    witnesses = seen.interception.moved
    if isinstance(witnesses, Unread) or not witnesses:
        return ""
    size = sum(flow.size for flow in witnesses[-1].flows)
    if not size:
        return ""
    return f"{size} B" if size < _KILO else f"{size / _KILO:.1f} kB"
