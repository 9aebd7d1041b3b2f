"""The legacy tables of a network namespace, read from the kernel: no tool can be missing or lie.

A table exists from the moment that somebody first reads it in the namespace, and stays. Source: xt_proto_init(),
ipt_get_info() and get_entries() in net/ipv4/netfilter/ip_tables.c; ip6_tables.c and arp_tables.c have the same.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from merbridge_lab.adapters import xt_rule
from merbridge_lab.adapters.netns import run_inside

_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class _Protocol:
    """The options of getsockopt and, in an entry, where its offsets are and where its matches begin."""

    level: int
    get_info: int
    hooks: tuple[str, ...]
    offsets: int
    begin: int

    @property
    def get_entries(self) -> int:
        return self.get_info + 1


_NETFILTER = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
# IPT_SO_GET_INFO and IP6T_SO_GET_INFO are 64, ARPT_SO_GET_INFO is 96.
_PROTOCOLS = {
    "ip": _Protocol(socket.IPPROTO_IP, 64, _NETFILTER, 88, 112),
    "ip6": _Protocol(socket.IPPROTO_IPV6, 64, _NETFILTER, 140, 168),
    "arp": _Protocol(socket.IPPROTO_IP, 96, ("INPUT", "OUTPUT", "FORWARD"), 164, 192),
}
_NAME = 32
_TRIES = 5

# struct ipt_ip: addresses and masks, links and masks, protocol, flags, inverted
_IP = struct.Struct("=4s4s4s4s16s16s16s16sHBB")
_VIA_IN, _VIA_OUT, _SOURCE, _DESTINATION, _KIND = 1, 2, 8, 16, 64
_GOTO = 2
#: xt_entry_match and xt_entry_target: length, name, revision
_HEAD = struct.Struct("=H29sB")
_ACCEPT, _DROP, _RETURN = -2, -1, -5
_VERDICTS = {_ACCEPT: "-j ACCEPT", _DROP: "-j DROP", _RETURN: "-j RETURN"}


class Chain(NamedTuple):
    """A chain; `policy` is "-" for one that is only reached by a jump. `told` is each rule's words and packets."""

    name: str
    policy: str
    told: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Table:
    """One legacy table; `entries` counts its rules, and two for each chain that somebody created: 0 for a new table.

    `chains` are those of IPv4, None for other families; `dropping` names the chains whose policy is to drop.
    """

    family: str
    name: str
    entries: int
    chains: tuple[Chain, ...] | None = None
    dropping: tuple[str, ...] = ()


def read(netns: Path) -> tuple[Table, ...]:
    """Read which tables exist in the namespace at `netns`, and what is in each; reading creates none.

    Raise OSError if it cannot be entered, or they cannot be read.
    """
    return run_inside(netns, _read)


def _read() -> tuple[Table, ...]:
    found = []
    for family, protocol in _PROTOCOLS.items():
        try:
            names = Path(f"/proc/thread-self/net/{family}_tables_names").read_text().split()
        except FileNotFoundError:
            continue  # the kernel has not loaded this family's tables: they can contain no rule
        found += [_table(family, protocol, name) for name in sorted(names)]
    return tuple(found)


class _Info(NamedTuple):
    hooks: dict[str, int]
    underflows: dict[str, int]
    entries: int
    size: int


def _table(family: str, protocol: _Protocol, name: str) -> Table:
    """Read one table; repeat if another one replaces it meanwhile."""
    for _ in range(_TRIES):
        info = _info(protocol, name)
        try:
            raw = _entries(protocol, name, info.size)
        except BlockingIOError:
            continue
        # Each hook ends with a policy, and the table with an entry that no packet reaches.
        entries = info.entries - len(info.hooks) - 1
        dropping = tuple(
            hook for hook, at in info.underflows.items() if _policy(raw, at + protocol.begin + _HEAD.size) != _ACCEPT
        )
        return Table(family, name, entries, _chains(raw, info) if family == "ip" else None, dropping)
    raise OSError(errno.EBUSY, f"the legacy table {name} keeps changing")


def _info(protocol: _Protocol, name: str) -> _Info:
    # struct ipt_getinfo: name, valid_hooks, hook_entry[], underflow[], num_entries, size
    number = len(protocol.hooks)
    layout = struct.Struct(f"={_NAME}sI{number}I{number}III")
    raw = _ask(protocol, protocol.get_info, name, layout.pack(name.encode(), *[0] * (2 * number + 3)))
    _, valid, *places, entries, size = layout.unpack(raw)
    named = [(at, hook) for at, hook in enumerate(protocol.hooks) if valid >> at & 1]
    return _Info({hook: places[at] for at, hook in named}, {hook: places[number + at] for at, hook in named},
                 entries, size)  # fmt: skip


def _entries(protocol: _Protocol, name: str, size: int) -> bytes:
    # struct ipt_get_entries: name, size, and what is aligned to eight bytes
    layout = struct.Struct(f"={_NAME}sI4x")
    raw = _ask(protocol, protocol.get_entries, name, layout.pack(name.encode(), size) + bytes(size))
    return raw[layout.size :]


def _ask(protocol: _Protocol, option: int, name: str, given: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(given, len(given))
    family = socket.AF_INET6 if protocol.level == socket.IPPROTO_IPV6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as asking:
        length = ctypes.c_uint32(len(given))
        if _LIBC.getsockopt(asking.fileno(), protocol.level, option, buffer, ctypes.byref(length)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"the legacy table {name}: {os.strerror(number)}")
    return buffer.raw


def _policy(raw: bytes, at: int) -> int:
    return int(struct.unpack_from("=i", raw, at)[0])


# -- the rules of IPv4 -----------------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    """An entry; `target` is where its target begins, `end` where the next entry begins."""

    at: int
    target: int
    end: int
    packets: int


def _chains(raw: bytes, info: _Info) -> tuple[Chain, ...]:
    """Split the entries into chains: each of a hook ends with its policy, each other one begins with its name."""
    entries = list(_walk(raw))
    begins = {at: name for name, at in info.hooks.items()}
    for entry in entries:
        if _target(raw, entry)[0] == "ERROR":
            # The name of the head of a chain; the last one is the table's end.
            begins[entry.end] = _target(raw, entry)[2].partition(b"\0")[0].decode(errors="replace")
    begins.pop(len(raw), None)
    policies = {at: hook for hook, at in info.underflows.items()}
    found: dict[str, list[tuple[str, int]]] = {}
    said: dict[str, str] = {}
    chain = ""
    for entry in entries:
        if entry.at in begins:
            chain = begins[entry.at]
            found[chain], said[chain] = [], "-"
        if entry.at in policies:
            verdict = _policy(raw, entry.target + _HEAD.size)
            said[chain] = _VERDICTS.get(verdict, f"-j {verdict}").removeprefix("-j ")
        elif _target(raw, entry)[0] != "ERROR":
            found[chain].append((_words(raw, entry, begins), entry.packets))
    for name, rules in found.items():
        # Every chain that somebody created ends with a return that is no rule of theirs.
        if said[name] == "-" and rules and rules[-1][0] == "-j RETURN":
            rules.pop()
    return tuple(Chain(name, said[name], tuple(rules)) for name, rules in found.items())


def _walk(raw: bytes) -> list[_Entry]:
    found, at = [], 0
    layout = struct.Struct("=HHIQ")  # target_offset, next_offset, comefrom, packets
    while at < len(raw):
        target, following, _, packets = layout.unpack_from(raw, at + _PROTOCOLS["ip"].offsets)
        if not following:
            raise OSError(errno.EPROTO, "the kernel returned a legacy rule without an end")
        found.append(_Entry(at, at + target, at + following, packets))
        at += following
    return found


def _target(raw: bytes, entry: _Entry) -> tuple[str, int, bytes]:
    return _extension(raw, entry.target)


def _extension(raw: bytes, at: int) -> tuple[str, int, bytes]:
    size, name, revision = _HEAD.unpack_from(raw, at)
    return name.partition(b"\0")[0].decode(errors="replace"), revision, raw[at + _HEAD.size : at + size]


def _words(raw: bytes, entry: _Entry, begins: dict[int, str]) -> str:
    jump = ""
    name, _, content = _target(raw, entry)
    if name == "" and (verdict := _policy(content, 0)) >= 0:
        # To the next entry: a rule that only counts.
        jump = begins.get(verdict, "" if verdict == entry.end else "(nowhere)")
    return _said(raw[entry.at : entry.at + _IP.size], raw[entry.at + _PROTOCOLS["ip"].begin : entry.target],
                 raw[entry.target : entry.end], jump)  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _said(head: bytes, matches: bytes, target: bytes, jump: str) -> str:
    """Return a rule as iptables-save would print it; `jump` is the chain that it leads to, if any."""
    spec = xt_rule.Spec()
    try:
        goto = _heads(spec, head)
        at = 0
        while at < len(matches):
            name, revision, content = _extension(matches, at)
            spec.matches.append(xt_rule.match(name, revision, content))
            at += _HEAD.unpack_from(matches, at)[0] or len(matches)
        name, revision, content = _extension(target, 0)
        if name:
            spec.end(xt_rule.target(name, revision, content))
        elif (verdict := _policy(content, 0)) < 0:
            spec.end(_VERDICTS[verdict])
        elif jump:
            spec.end(f"{'-g' if goto else '-j'} {jump}")
        return str(spec)
    except (xt_rule.StrangeError, KeyError, struct.error) as error:
        return xt_rule.strange(error if isinstance(error, xt_rule.StrangeError) else "a rule of another form")


def _heads(spec: xt_rule.Spec, head: bytes) -> bool:
    """Parse addresses, links and protocol; return whether the target is a goto and not a jump."""
    source, destination, source_mask, destination_mask, *links, protocol, flags, inverted = _IP.unpack(head)
    if flags & ~_GOTO or inverted & ~(_VIA_IN | _VIA_OUT | _SOURCE | _DESTINATION | _KIND):
        raise xt_rule.StrangeError("an option of a rule")
    for option, address, mask, bit in (
        ("-s", source, source_mask, _SOURCE),
        ("-d", destination, destination_mask, _DESTINATION),
    ):
        if any(mask) or inverted & bit:
            spec.head(option, xt_rule.network(address, mask), inverted=bool(inverted & bit))
    for option, name, mask, bit in (("-i", links[0], links[2], _VIA_IN), ("-o", links[1], links[3], _VIA_OUT)):
        length = len(mask.rstrip(b"\0"))
        if length or inverted & bit:
            begin = name[:length]
            told = begin.rstrip(b"\0").decode(errors="replace") + ("" if begin.endswith(b"\0") else "+")
            spec.head(option, told, inverted=bool(inverted & bit))
    if protocol or inverted & _KIND:
        spec.head("-p", xt_rule.protocol(protocol), inverted=bool(inverted & _KIND))
    return bool(flags & _GOTO)
