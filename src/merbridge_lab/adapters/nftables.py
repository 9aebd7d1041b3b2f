"""The nftables of a network namespace, read from the kernel through netlink: no tool can be missing or lie.

Besides tables, chains and rules there is the generation: a number that increases with every change of the rules. Equal
rules before and after show only those two moments; an equal generation shows that they did not change in between.
Source: net/netfilter/nf_tables_api.c (nft_net.base_seq is the generation) and <linux/netfilter/nf_tables.h>.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab.adapters import netlink_hooks as messages
from merbridge_lab.adapters import nft_rule
from merbridge_lab.adapters.netns import run_inside

if TYPE_CHECKING:
    from pathlib import Path

# <linux/netlink.h>, <linux/netfilter/nfnetlink.h>
_NETLINK_NETFILTER = 12
_SUBSYS_NFTABLES = 10
_REQUEST, _DUMP = 0x1, 0x300
_DUMP_INTERRUPTED = 0x10
_ERROR, _DONE = 2, 3
# enum nf_tables_msg_types; the answer to each GET is one less
_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_GEN = 1, 4, 7, 16
_HOOK, _POLICY = 4, 5  # NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NFGEN = struct.Struct("=BBH")  # family, version, resource
_RECEIVE = 1 << 17
_TRIES = 5


@dataclass(frozen=True)
class Chain:
    """One chain; `hook` is "" for one that is only reached by a jump, else its type: "filter", "nat" or "route".

    `packets` is the sum of the counters in its rules. `does` names the expressions of its rules, as the kernel calls
    them ("counter", "redir", "tproxy"). `told` is each rule in iptables' words with its counts. `place` is hook and
    priority, and `drops` means that its policy is to drop.
    """

    family: str
    table: str
    name: str
    hook: str
    rules: int = 0
    packets: int = 0
    does: frozenset[str] = frozenset()
    told: tuple[tuple[str, int], ...] = ()
    place: tuple[int, int] | None = None
    drops: bool = False


@dataclass(frozen=True)
class Tables:
    """All nftables of a namespace at one moment; `names` are "FAMILY NAME", `dormant` those switched off by a flag."""

    generation: int
    names: tuple[str, ...] = ()
    chains: tuple[Chain, ...] = ()
    dormant: tuple[str, ...] = ()


def read(netns: Path) -> Tables:
    """Read the tables in the namespace at `netns`; a kernel without nftables has none.

    Raise OSError if it cannot be entered or read.
    """
    return run_inside(netns, _read)


def generation(netns: Path) -> int:
    """Read only the generation; 0 for a kernel without nftables. Raises OSError."""
    return run_inside(netns, _read_generation)


def _read_generation() -> int:
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.settimeout(5.0)
            return _generation(netlink)
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EINVAL):
            return 0
        raise


def _read() -> Tables:
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return Tables(0)
        raise
    with netlink:
        netlink.settimeout(5.0)
        for _ in range(_TRIES):
            try:
                before = _generation(netlink)
            except OSError as error:
                if error.errno == errno.EINVAL:  # nfnetlink has no subsystem that answers for nftables
                    return Tables(0)
                raise
            found = _dump(netlink, before)
            if found is not None and _generation(netlink) == before:
                return found
    raise OSError(errno.EBUSY, "the rules keep changing")


def _dump(netlink: socket.socket, generation: int) -> Tables | None:
    """Read everything; None if it changed meanwhile."""
    told = [_ask(netlink, kind) for kind in (_GET_TABLE, _GET_CHAIN, _GET_RULE)]
    if any(each is None for each in told):
        return None
    tables, chains, rules = ([*each] for each in told if each is not None)
    names = tuple(f"{family} {_text(attributes[1])}" for family, attributes in tables)
    dormant = tuple(
        name for name, (_, told_) in zip(names, tables, strict=True) if int.from_bytes(told_.get(2, b""), "big") & 1
    )
    counted: dict[tuple[str, str, str], list[tuple[int, nft_rule.Expressions]]] = {}
    for family, attributes in rules:
        key = (family, _text(attributes[1]), _text(attributes[2]))
        counted.setdefault(key, []).append(_rule(attributes.get(4, b"")))
    found = []
    for family, attributes in chains:
        table, name = _text(attributes[1]), _text(attributes[3])
        hook = _text(attributes.get(7, b"filter")) if _HOOK in attributes else ""
        where = messages.attributes(attributes.get(_HOOK, b""))
        place = (_number(where[1]), _number(where[2])) if {1, 2} <= where.keys() else None
        its = counted.get((family, table, name), [])
        does = frozenset(what for _, rule in its for what, _ in rule)
        words = tuple((nft_rule.words(rule), packets) for packets, rule in its)
        drops = hook != "" and _number(attributes.get(_POLICY, b"\0\0\0\1")) == 0
        packets = sum(each for each, _ in its)
        found.append(Chain(family, table, name, hook, len(its), packets, does, words, place, drops))
    return Tables(generation, names, tuple(found), dormant)


def _rule(expressions: bytes) -> tuple[int, nft_rule.Expressions]:
    """Return the packets that a rule has counted, and its expressions, without counts."""
    packets, found = 0, []
    for _, element in messages.pairs(expressions):
        expression = messages.attributes(element)
        name = _text(expression[1])
        content = expression.get(2, b"")
        if name == "counter":
            packets += _number(messages.attributes(content)[2])
            content = b""
        found.append((name, content))
    return packets, tuple(found)


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "big", signed=True)


def _generation(netlink: socket.socket) -> int:
    told = _ask(netlink, _GET_GEN, dump=False)
    for _, attributes in told or ():
        return int.from_bytes(attributes[1], "big")
    raise OSError(errno.EPROTO, "the kernel does not report the generation of its rules")


def _ask(netlink: socket.socket, kind: int, *, dump: bool = True) -> list[tuple[str, dict[int, bytes]]] | None:
    """Send a request; return family and attributes of each answer, or None if a change interrupted the dump."""
    body = _NFGEN.pack(socket.AF_UNSPEC, 0, 0)
    flags = _REQUEST | (_DUMP if dump else 0)
    netlink.send(_HEADER.pack(_HEADER.size + len(body), (_SUBSYS_NFTABLES << 8) | kind, flags, kind, 0) + body)
    answers: list[tuple[str, dict[int, bytes]]] = []
    whole = True
    while True:
        buffer = netlink.recv(_RECEIVE)
        at = 0
        while at + _HEADER.size <= len(buffer):
            length, answer, flags, _sequence, _port = _HEADER.unpack_from(buffer, at)
            payload = buffer[at + _HEADER.size : at + length]
            at += (length + 3) & ~3
            whole = whole and not flags & _DUMP_INTERRUPTED
            if answer in (_ERROR, _DONE):
                number = -struct.unpack_from("=i", payload)[0] if payload else 0
                if number and number != errno.EINTR:
                    raise OSError(number, os.strerror(number))
                return answers if whole and not number else None
            family = _FAMILIES.get(payload[0], str(payload[0]))
            answers.append((family, messages.attributes(payload[_NFGEN.size :])))
            if not dump:
                return answers


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
