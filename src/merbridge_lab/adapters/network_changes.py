"""Changes in a network namespace from now on, as the kernel reports them, including those undone before anybody looks.

Reported are: changes of links, IPv4 addresses and routes, rules of policy routing, next hops, neighbours, queueing
disciplines with their classes and filters, and settings of links that have their own notification; of IPsec; and of
nftables, in which table. IPv6's addresses and routes are left out: the kernel changes them by itself, and nothing of
the lab uses them. The kernel does not report changes of the legacy iptables.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from merbridge_lab.adapters import netlink_hooks, netns, network_dump

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ROUTE, _XFRM, _NETFILTER = 0, 6, 12
#: RTNLGRP_*: LINK, NEIGH, TC, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_RULE, IPV4_NETCONF, NEXTHOP.
_GROUPS = {
    _ROUTE: (1, 3, 4, 5, 7, 8, 19, 24, 32),
    _XFRM: (3, 4),  # XFRMNLGRP_SA, XFRMNLGRP_POLICY
    _NETFILTER: (7,),  # NFNLGRP_NFTABLES
}
_NFTABLES, _NEWGEN, _TABLE = 10, 15, 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN; in all others: the table's name
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_SOL_NETLINK, _ADD_MEMBERSHIP, _SO_RCVBUFFORCE = 270, 1, 33
_ROOM = 4 << 20
_NETCONF = (80, 81)
#: NETCONFA_*, by the names of sysctl.
_SETTINGS = {2: "forwarding", 3: "rp_filter", 4: "mc_forwarding", 5: "proxy_arp", 6: "ignore_routes_with_linkdown"}
_INT = 4
_ALL = {-1: "all", -2: "default"}


class Change(NamedTuple):
    """One change: whether something is there now that was not, or was altered; its kind and its line."""

    is_there: bool
    kind: str
    line: str


class Listener:
    """Listens in one network namespace from its creation on. Raises OSError."""

    def __init__(self, namespace: Path) -> None:
        self._names: dict[int, str] = {}
        self._told = netns.run_inside(namespace, self._listen)

    def _listen(self) -> dict[int, socket.socket]:
        self._names = dict(socket.if_nameindex())
        with contextlib.ExitStack() as stack:
            told = {}
            for family, groups in _GROUPS.items():
                try:
                    told[family] = stack.enter_context(_socket(family, groups))
                except OSError as error:
                    # A kernel without IPsec, or without netfilter, has no such notifications.
                    if family == _ROUTE or error.errno not in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
                        raise
            stack.pop_all()
        return told

    def changes(self) -> list[Change]:
        """Return what has changed since the last call. Raise OSError if the kernel could not report everything."""
        found = []
        settings = []
        for family, told in self._told.items():
            for kind, body in _messages(told):
                if family == _XFRM:
                    found.append(Change(is_there=True, kind="IPsec rule", line=f"of netlink's kind {kind}"))
                elif family == _NETFILTER:
                    found += _tables(kind, body)
                elif kind in _NETCONF:
                    settings.append(body)  # a new link has settings before its name was reported
                elif (read := network_dump.line_of(kind, body, self._names)) is not None:
                    found.append(Change(*read))
        return [*found, *(each for body in settings for each in self._settings(body))]

    def _settings(self, body: bytes) -> Iterator[Change]:
        told = {
            kind: struct.unpack("=i", value)[0] for kind, value in netlink_hooks.pairs(body[4:]) if len(value) == _INT
        }
        index = told.get(1, 0)
        link = _ALL.get(index) or self._names.get(index, f"link {index}")
        for kind, name in _SETTINGS.items():
            if kind in told:
                yield Change(is_there=True, kind="setting", line=f"ipv4/conf/{link}/{name} {told[kind]}")

    def close(self) -> None:
        """Stop listening."""
        for told in self._told.values():
            told.close()


def _tables(kind: int, body: bytes) -> Iterator[Change]:
    """Yield the tables of nftables that changed; a notice that the generation changed adds nothing."""
    if kind >> 8 == _NFTABLES and kind & 0xFF != _NEWGEN:
        name = netlink_hooks.attributes(body[4:]).get(_TABLE, b"").rstrip(b"\0").decode(errors="replace")
        yield Change(is_there=True, kind="nftables table", line=f"{_FAMILIES.get(body[0], body[0])} {name}")


def _socket(family: int, groups: tuple[int, ...]) -> socket.socket:
    told = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
    try:
        with contextlib.suppress(OSError):  # then the buffer has the machine's default size
            told.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        told.setblocking(False)
        told.bind((0, 0))
        for group in groups:
            told.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except BaseException:
        told.close()
        raise
    return told


def _messages(told: socket.socket) -> Iterator[tuple[int, bytes]]:
    while True:
        try:
            raw, at = told.recv(1 << 17), 0
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise OSError(error.errno, "more changed than the kernel could report") from error
            raise
        while at + netlink_hooks.HEADER.size <= len(raw):
            length, kind, *_ = netlink_hooks.HEADER.unpack_from(raw, at)
            yield kind, raw[at + netlink_hooks.HEADER.size : at + length]
            at += max((length + 3) & ~3, netlink_hooks.HEADER.size)
