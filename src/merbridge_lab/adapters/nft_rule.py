"""One rule of nftables, as the kernel holds it, in the words of iptables-save, as iptables-nft would print it.

Versions of iptables-nft write the same rule in different ways (a port with the match "tcp", or by comparing the
packet's bytes). What none of them writes is reported as strange. Source: iptables/nft-shared.c and nft.c of iptables,
<linux/netfilter/nf_tables.h>.
"""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple

from merbridge_lab.adapters import xt_rule
from merbridge_lab.adapters.netlink_hooks import attributes

# Where a payload begins, what meta loads, how cmp compares
_NETWORK, _TRANSPORT = 1, 2
_PROTOCOL_META, _MARK_META, _INTERFACES = 16, 3, {6: "-i", 7: "-o"}
_PROTOCOL, _ADDRESSES, _PORTS = 9, {12: "-s", 16: "-d"}, {0: "--sport", 2: "--dport"}
_FLAGS_OF_TCP, _TCP_FLAGS = 13, "--tcp-flags"
_EQUAL, _UNEQUAL, _AT_MOST, _ABOVE = 0, 1, 3, 4
_VERDICTS = {0: "-j DROP", 1: "-j ACCEPT", -5: "-j RETURN"}
_CHAINS = {-3: "-j", -4: "-g"}

#: Name and content of each expression of a rule; for a counter, without its counts.
Expressions = tuple[tuple[str, bytes], ...]


class _Loaded(NamedTuple):
    """The content of a register: bytes of the packet from an offset on, or something about it."""

    base: int
    offset: int
    mask: bytes


@functools.lru_cache(maxsize=1024)
def words(expressions: Expressions) -> str:
    """Return the rule as iptables-save would print it; see xt_rule.ANY and xt_rule.strange."""
    try:
        return str(_Reader().read(expressions))
    except (xt_rule.StrangeError, KeyError, IndexError, ValueError, struct.error) as error:
        return xt_rule.strange(error if isinstance(error, xt_rule.StrangeError) else "a rule of another form")


class _Reader:
    def __init__(self) -> None:
        self._spec = xt_rule.Spec()
        self._registers: dict[int, _Loaded] = {}
        #: The words of ports and flags that are compared natively; together they are one match.
        self._ports: dict[str, str] = {}
        self._ports_at = 0

    def read(self, expressions: Expressions) -> xt_rule.Spec:
        names = [name for name, _ in expressions]
        if names.count("counter") != 1:
            raise xt_rule.StrangeError("a rule without a counter")
        for name, content in expressions:
            if self._spec.target:
                raise xt_rule.StrangeError(f"{name} after the target")
            if name != "counter":
                self._take(name, attributes(content))
        if self._ports:
            # The protocol is one of the heads, whatever the order of the comparisons.
            kind = self._spec.heads["-p"].removeprefix("-p ")
            if kind != "tcp" and (kind != "udp" or _TCP_FLAGS in self._ports):
                raise xt_rule.StrangeError(f"ports of {kind}")
            all_ = " ".join(self._ports[each] for each in (*_PORTS.values(), _TCP_FLAGS) if each in self._ports)
            self._spec.matches.insert(self._ports_at, f"-m {kind} {all_}")
        return self._spec

    def _take(self, name: str, told: dict[int, bytes]) -> None:
        if name == "payload":
            base, offset, size = (_number(told[each]) for each in (2, 3, 4))
            self._load(_number(told[1]), base, offset, size)
        elif name == "meta":
            key = _number(told[2])
            self._load(_number(told[1]), 0, key, 4 if key == _MARK_META else 0)
        elif name == "bitwise":
            self._bitwise(told)
        elif name == "cmp":
            self._compare(self._registers.pop(_number(told[1])), _number(told[2]), _value(told[3]))
        elif name == "range":
            loaded, inverted = self._registers.pop(_number(told[1])), {_EQUAL: False, _UNEQUAL: True}[_number(told[2])]
            self._compare_range(loaded, _value(told[3]), _value(told[4]), inverted=inverted)
        elif name == "immediate":
            self._spec.end(_verdict(told))
        elif name == "match":
            self._spec.matches.append(xt_rule.match(_text(told[1]), _number(told[2]), told[3]))
        elif name == "target":
            self._spec.end(xt_rule.target(_text(told[1]), _number(told[2]), told[3]))
        else:
            self._in_part(name, told)

    def _in_part(self, name: str, told: dict[int, bytes]) -> None:
        """Return what iptables writes natively in place of a match or target whose words are all unknown."""
        if name == "limit" and not _number(told.get(4, b"")) and not _number(told.get(5, b"")):  # packets, not above
            self._spec.matches.append(f"-m limit{xt_rule.ANY}")
        elif name == "log" and 1 in told and told.keys() <= {1, 2, 3, 4}:  # to a group, not to the kernel's log
            self._spec.end(f"-j NFLOG{xt_rule.ANY}")
        else:
            raise xt_rule.StrangeError(name)

    def _load(self, register: int, base: int, offset: int, size: int) -> None:
        if self._registers:  # they overlap; iptables compares what it has loaded before it loads the next
            raise xt_rule.StrangeError("two registers")
        self._registers[register] = _Loaded(base, offset, b"\xff" * size)

    def _bitwise(self, told: dict[int, bytes]) -> None:
        source, destination = _number(told[1]), _number(told[2])
        mask, flipped = _value(told[4]), _value(told[5])
        if any(flipped) or told.get(6, b"\0\0\0\0") != b"\0\0\0\0":  # another operation than "and"
            raise xt_rule.StrangeError("bitwise")
        loaded = self._registers.pop(source)
        if len(mask) != len(loaded.mask):
            raise xt_rule.StrangeError("bitwise")
        self._registers[destination] = loaded._replace(mask=mask)

    def _compare(self, loaded: _Loaded, operation: int, value: bytes) -> None:
        base, offset, mask = loaded
        if operation not in (_EQUAL, _UNEQUAL):
            self._compare_order(loaded, operation, value)
            return
        inverted = operation == _UNEQUAL
        whole = mask == b"\xff" * len(mask)
        if (base, offset) == (0, _PROTOCOL_META) or ((base, offset) == (_NETWORK, _PROTOCOL) and whole):
            if len(value) != 1:
                raise xt_rule.StrangeError("a protocol")
            self._spec.head("-p", xt_rule.protocol(value[0]), inverted=inverted)
        elif base == 0 and offset in _INTERFACES:
            # Without its last zero, it is only a prefix of a name.
            name = _text(value) if value.endswith(b"\0") else f"{_text(value)}+"
            self._spec.head(_INTERFACES[offset], name, inverted=inverted)
        elif base == _NETWORK and offset in _ADDRESSES and len(value) == len(mask) <= 4:  # noqa: PLR2004 - IPv4
            told = xt_rule.network(value.ljust(4, b"\0"), mask.ljust(4, b"\0"))
            self._spec.head(_ADDRESSES[offset], told, inverted=inverted)
        elif (base, offset, len(value)) == (0, _MARK_META, 4):
            self._spec.matches.append(xt_rule.mark(value, mask, inverted=inverted))
        elif (base, offset, len(value), len(mask)) == (_TRANSPORT, _FLAGS_OF_TCP, 1, 1) and not whole:
            self._port(_TCP_FLAGS, xt_rule.tcp_flags(mask[0], value[0], inverted=inverted))
        elif base == _TRANSPORT and whole and len(mask) == len(value):
            self._compare_ports(offset, value, inverted=inverted)
        else:
            raise xt_rule.StrangeError("cmp")

    def _compare_ports(self, offset: int, value: bytes, *, inverted: bool) -> None:
        places = range(offset, offset + len(value), 2)
        if len(value) % 2 or (inverted and len(places) > 1):  # 1.8.9 compares this way, which is not what it was told
            raise xt_rule.StrangeError("ports")
        for at, place in enumerate(places):
            option, port = _PORTS[place], _number(value[2 * at : 2 * at + 2])
            self._port(option, xt_rule.ports(option, port, port, inverted=inverted))

    def _compare_order(self, loaded: _Loaded, operation: int, value: bytes) -> None:
        last = b"\xff\xff"
        if operation == _AT_MOST:
            self._compare_range(loaded, b"\0\0", value)
        elif operation == _ABOVE and len(value) == len(last) and value != last:
            # Typed as "! --dport :PORT"; iptables-save prints the ports above it.
            self._compare_range(loaded, (_number(value) + 1).to_bytes(len(value), "big"), last)
        else:
            raise xt_rule.StrangeError("cmp")

    def _compare_range(self, loaded: _Loaded, least: bytes, most: bytes, *, inverted: bool = False) -> None:
        base, offset, mask = loaded
        if base != _TRANSPORT or mask != b"\xff\xff" or not len(least) == len(most) == len(mask):
            raise xt_rule.StrangeError("range")
        option = _PORTS[offset]
        self._port(option, xt_rule.ports(option, _number(least), _number(most), inverted=inverted))

    def _port(self, option: str, words: str) -> None:
        if option in self._ports or not words:
            raise xt_rule.StrangeError(f"{option} twice, or of all")
        if not self._ports:
            self._ports_at = len(self._spec.matches)
        self._ports[option] = words


def _verdict(told: dict[int, bytes]) -> str:
    if _number(told[1]):  # NFT_REG_VERDICT is 0
        raise xt_rule.StrangeError("immediate")
    verdict = attributes(attributes(told[2])[2])
    code = int.from_bytes(verdict[1], "big", signed=True)
    return f"{_CHAINS[code]} {_text(verdict[2])}" if code in _CHAINS else _VERDICTS[code]


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def _value(raw: bytes) -> bytes:
    return attributes(raw)[1]


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")
