"""One rule of nftables, as the kernel holds it, in the words of iptables-save: what iptables-nft makes of a rule.

Its versions write the same in different ways (a port by the match "tcp", or by comparing the packet's bytes); what
none of them writes is strange. Source: iptables/nft-shared.c and nft.c of iptables, <linux/netfilter/nf_tables.h>.
"""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, NamedTuple

from merbridge_lab.adapters import xt

if TYPE_CHECKING:
    from collections.abc import Iterator

_ATTRIBUTE = struct.Struct("=HH")  # length, type
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

# Where a payload begins, what meta loads, how cmp compares
_NETWORK, _TRANSPORT = 1, 2
_PROTOCOL_META, _INTERFACES = 16, {6: "-i", 7: "-o"}
_PROTOCOL, _ADDRESSES, _PORTS = 9, {12: "-s", 16: "-d"}, {0: "--sport", 2: "--dport"}
_EQUAL, _UNEQUAL = 0, 1
_VERDICTS = {0: "-j DROP", 1: "-j ACCEPT", -5: "-j RETURN"}
_CHAINS = {-3: "-j", -4: "-g"}

#: Name and content of each expression of a rule; of a counter without what it has counted.
Expressions = tuple[tuple[str, bytes], ...]


class _Loaded(NamedTuple):
    """What a register holds: bytes of the packet from an offset on, or something about it."""

    base: int
    offset: int
    mask: bytes


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give type and content of each netlink attribute."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3


@functools.lru_cache(maxsize=1024)
def words(expressions: Expressions) -> str:
    """Give the rule as iptables-save would tell it; see xt.ANY and xt.strange."""
    try:
        return str(_Reader().read(expressions))
    except (xt.StrangeError, KeyError, IndexError, ValueError, struct.error) as error:
        return xt.strange(error if isinstance(error, xt.StrangeError) else "a rule of another form")


class _Reader:
    def __init__(self) -> None:
        self._spec = xt.Spec()
        self._registers: dict[int, _Loaded] = {}
        #: The words of ports that are compared natively; those of either side make one match.
        self._ports: dict[str, str] = {}
        self._ports_at = 0

    def read(self, expressions: Expressions) -> xt.Spec:
        names = [name for name, _ in expressions]
        if names.count("counter") != 1:
            raise xt.StrangeError("a rule that does not count")
        for name, content in expressions:
            if self._spec.target:
                raise xt.StrangeError(f"{name} after the target")
            if name != "counter":
                self._take(name, dict(attributes(content)))
        if self._ports:
            # The protocol stands in a head, in whatever order they were compared.
            kind = self._spec.heads["-p"].removeprefix("-p ")
            if kind not in ("tcp", "udp"):
                raise xt.StrangeError(f"ports of {kind}")
            both = " ".join(self._ports[each] for each in _PORTS.values() if each in self._ports)
            self._spec.matches.insert(self._ports_at, f"-m {kind} {both}")
        return self._spec

    def _take(self, name: str, told: dict[int, bytes]) -> None:
        if name == "payload":
            base, offset, size = (_number(told[each]) for each in (2, 3, 4))
            self._load(_number(told[1]), base, offset, size)
        elif name == "meta":
            self._load(_number(told[1]), 0, _number(told[2]), 0)
        elif name == "bitwise":
            self._bitwise(told)
        elif name == "cmp":
            self._compare(self._registers.pop(_number(told[1])), _number(told[2]), _value(told[3]))
        elif name == "immediate":
            self._spec.end(_verdict(told))
        elif name == "match":
            self._spec.matches.append(xt.match(_text(told[1]), _number(told[2]), told[3]))
        elif name == "target":
            self._spec.end(xt.target(_text(told[1]), _number(told[2]), told[3]))
        else:
            raise xt.StrangeError(name)

    def _load(self, register: int, base: int, offset: int, size: int) -> None:
        if self._registers:  # they overlap; iptables compares what it has loaded before it loads again
            raise xt.StrangeError("two registers")
        self._registers[register] = _Loaded(base, offset, b"\xff" * size)

    def _bitwise(self, told: dict[int, bytes]) -> None:
        source, destination = _number(told[1]), _number(told[2])
        mask, flipped = _value(told[4]), _value(told[5])
        if any(flipped) or told.get(6, b"\0\0\0\0") != b"\0\0\0\0":  # another operation than "and"
            raise xt.StrangeError("bitwise")
        loaded = self._registers.pop(source)
        if len(mask) != len(loaded.mask):
            raise xt.StrangeError("bitwise")
        self._registers[destination] = loaded._replace(mask=mask)

    def _compare(self, loaded: _Loaded, operation: int, value: bytes) -> None:
        base, offset, mask = loaded
        if operation not in (_EQUAL, _UNEQUAL):
            raise xt.StrangeError("cmp")
        inverted = operation == _UNEQUAL
        whole = mask == b"\xff" * len(mask)
        if (base, offset) == (0, _PROTOCOL_META) or ((base, offset) == (_NETWORK, _PROTOCOL) and whole):
            if len(value) != 1:
                raise xt.StrangeError("a protocol")
            self._spec.head("-p", xt.protocol(value[0]), inverted=inverted)
        elif base == 0 and offset in _INTERFACES:
            # Without its last zero, it is the beginning of a name.
            name = _text(value) if value.endswith(b"\0") else f"{_text(value)}+"
            self._spec.head(_INTERFACES[offset], name, inverted=inverted)
        elif base == _NETWORK and offset in _ADDRESSES and len(value) == len(mask) <= 4:  # noqa: PLR2004 - IPv4
            told = xt.network(value.ljust(4, b"\0"), mask.ljust(4, b"\0"))
            self._spec.head(_ADDRESSES[offset], told, inverted=inverted)
        elif base == _TRANSPORT and whole and len(mask) == len(value):
            self._compare_ports(offset, value, inverted=inverted)
        else:
            raise xt.StrangeError("cmp")

    def _compare_ports(self, offset: int, value: bytes, *, inverted: bool) -> None:
        places = range(offset, offset + len(value), 2)
        if len(value) % 2 or (inverted and len(places) > 1):
            raise xt.StrangeError("ports")
        if not self._ports:
            self._ports_at = len(self._spec.matches)
        for at, place in enumerate(places):
            option, port = _PORTS[place], int.from_bytes(value[2 * at : 2 * at + 2], "big")
            if option in self._ports:
                raise xt.StrangeError(f"{option} twice")
            self._ports[option] = xt.ports(option, port, port, inverted=inverted)


def _verdict(told: dict[int, bytes]) -> str:
    if _number(told[1]):  # NFT_REG_VERDICT is 0
        raise xt.StrangeError("immediate")
    verdict = dict(attributes(dict(attributes(told[2]))[2]))
    code = int.from_bytes(verdict[1], "big", signed=True)
    return f"{_CHAINS[code]} {_text(verdict[2])}" if code in _CHAINS else _VERDICTS[code]


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def _value(raw: bytes) -> bytes:
    return dict(attributes(raw))[1]


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")
