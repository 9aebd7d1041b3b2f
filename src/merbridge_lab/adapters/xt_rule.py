"""Rules as the kernel holds them, in the words of iptables-save: the common part of both backends of iptables.

The matches and targets are of x_tables in either backend. This module knows what the lab's own rules consist of. Of any
other match or target it knows the name, and ANY replaces what follows it. Sources: <linux/netfilter/xt_*.h>,
<linux/netfilter/nf_nat.h>.
"""

from __future__ import annotations

import ipaddress
import re
import struct
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    #: Flags; the first address and the last; the lowest port and the highest.
    _Range = tuple[int, bytes, bytes, bytes, bytes]

#: In the words of a rule: matches anything.
ANY = "\ue000"
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 50: "esp", 51: "ah", 132: "sctp", 136: "udplite"}
MOST_PORT = 0xFFFF
_SIMPLE = re.compile(r"[\w-]+", re.ASCII)
#: NF_NAT_RANGE_MAP_IPS, NF_NAT_RANGE_PROTO_SPECIFIED
_ADDRESS, _PORTS = 1, 2
#: The options of the matches owner and conntrack, by their bits.
_OWNERS = {1: "--uid-owner", 2: "--gid-owner"}
_STATES = {1: "INVALID", 8: "NEW", 4: "RELATED", 2: "ESTABLISHED"}
_TCP_FLAGS = {1: "FIN", 2: "SYN", 4: "RST", 8: "PSH", 16: "ACK", 32: "URG"}
_ORDER = ("-s", "-d", "-i", "-o", "-p")


class StrangeError(Exception):
    """The kernel holds something that no known rule of iptables has."""


@dataclass
class Spec:
    """The words of one rule, as they are found; `heads` are those before the matches, by option."""

    heads: dict[str, str] = field(default_factory=dict)
    matches: list[str] = field(default_factory=list)
    target: str = ""

    def head(self, option: str, value: str, *, inverted: bool = False) -> None:
        """Add one of them. Raise StrangeError if it is already there."""
        if option in self.heads:
            raise StrangeError(f"{option} twice")
        self.heads[option] = f"{'! ' if inverted else ''}{option} {value}"

    def end(self, target: str) -> None:
        """Set what happens to the packet. Raise StrangeError if that is already set."""
        if self.target:
            raise StrangeError("two targets")
        self.target = target

    def __str__(self) -> str:
        return " ".join(filter(None, (*(self.heads.get(each) for each in _ORDER), *self.matches, self.target)))


def strange(what: object) -> str:
    """Return words, in place of a rule's, that no text of iptables-save contains."""
    return f"(what merlab does not know: {what})"


def agrees(known: str, told: str) -> bool:
    """Report whether a tool's words of a rule are the kernel's, as far as these are known."""
    return known == told or (
        ANY in known and re.fullmatch(".*".join(map(re.escape, known.split(ANY))), told, re.DOTALL) is not None
    )


def shown(known: str) -> str:
    """Return the kernel's words for a person."""
    return known.replace(ANY, "…")


def network(address: bytes, mask: bytes) -> str:
    """Return an address with its mask as iptables-save prints it."""
    bits = f"{int.from_bytes(mask, 'big'):032b}"
    length = bits.count("1")
    said = str(length) if bits == "1" * length + "0" * (32 - length) else str(ipaddress.IPv4Address(mask))
    return f"{ipaddress.IPv4Address(address)}/{said}"


def protocol(number: int) -> str:
    """Return the name of a protocol."""
    return PROTOCOLS.get(number, str(number))


def ports(option: str, least: int, most: int, *, inverted: bool = False) -> str:
    """Return the words that match ports, "" if they are all ports."""
    if (least, most) == (0, MOST_PORT) and not inverted:
        return ""
    return f"{'! ' if inverted else ''}{option} {least if least == most else f'{least}:{most}'}"


def tcp_flags(mask: int, compared: int, *, inverted: bool = False) -> str:
    """Return the words that match flags of TCP. Raises StrangeError for bits that have no name."""
    if (mask | compared) & ~sum(_TCP_FLAGS):
        raise StrangeError("flags of TCP")
    named = (",".join(name for bit, name in _TCP_FLAGS.items() if bits & bit) for bits in (mask, compared))
    return f"{'! ' if inverted else ''}--tcp-flags {' '.join(each or 'NONE' for each in named)}"


def mark(value: bytes, mask: bytes, *, inverted: bool = False) -> str:
    """Return the words that match a packet's mark, which the kernel stores in the machine's byte order."""
    numbers = [int.from_bytes(each, sys.byteorder) for each in (value, mask)]
    told = f"{numbers[0]:#x}" if mask == b"\xff" * 4 else f"{numbers[0]:#x}/{numbers[1]:#x}"
    return f"-m mark {'! ' if inverted else ''}--mark {told}"


def match(name: str, revision: int, info: bytes) -> str:
    """Return the words of a match. Raises StrangeError for one of a known name and an unknown form."""
    return f"-m {name}{_arguments(_MATCHES, name, revision, info)}"


def target(name: str, revision: int, info: bytes) -> str:
    """Return the words of a target. Raises StrangeError for one of a known name and an unknown form."""
    return f"-j {name}{_arguments(_TARGETS, name, revision, info)}"


def _arguments(
    known: dict[str, dict[int, Callable[[bytes], str | None]]], name: str, revision: int, info: bytes
) -> str:
    if name not in known:
        return ANY
    try:
        told = known[name][revision](info)
    except (KeyError, struct.error):
        told = None
    if told is None:
        raise StrangeError(f"{name} of an unknown form")
    return f" {told}" if told else ""


def _rest(info: bytes, layout: struct.Struct) -> bool:
    """Report whether there is more than what was parsed."""
    return any(info[layout.size :])


_TCP, _UDP = struct.Struct("=4H4B"), struct.Struct("=4HB")


def _tcp(info: bytes) -> str | None:
    *four, option, mask, compared, inverted = _TCP.unpack_from(info)
    if option or inverted & ~7 or _rest(info, _TCP):
        return None
    flags = tcp_flags(mask, compared, inverted=bool(inverted & 4)) if mask or compared or inverted & 4 else ""
    return " ".join(filter(None, (_both(four, inverted), flags)))


def _udp(info: bytes) -> str | None:
    *four, inverted = _UDP.unpack_from(info)
    return None if inverted & ~3 or _rest(info, _UDP) else _both(four, inverted)


def _both(four: list[int], inverted: int) -> str:
    source = ports("--sport", four[0], four[1], inverted=bool(inverted & 1))
    return " ".join(filter(None, (source, ports("--dport", four[2], four[3], inverted=bool(inverted & 2)))))


_OWNER = struct.Struct("=4I2B")


def _owner(info: bytes) -> str | None:
    *numbers, matched, inverted = _OWNER.unpack_from(info)
    if not matched or matched & ~3 or inverted & ~matched or _rest(info, _OWNER):
        return None
    found = []
    for bit, option in _OWNERS.items():
        least, most = numbers[2 * (bit - 1) : 2 * bit]
        if matched & bit:
            found.append(f"{'! ' if inverted & bit else ''}{option} {least if least == most else f'{least}-{most}'}")
        elif least or most:
            return None
    return " ".join(found)


def _comment(info: bytes) -> str | None:
    text = info.partition(b"\0")[0].decode(errors="replace")
    if ANY in text or not text:
        return None
    quoted = text if _SIMPLE.fullmatch(text) else '"' + re.sub(r"([\"'\\])", r"\\\1", text) + '"'
    return f"--comment {quoted}"


#: The fields before match_flags in xt_conntrack_mtinfo3: addresses and masks, times of expiry, protocol and ports.
_CONNTRACK = struct.Struct("=146x4H")


def _conntrack(info: bytes) -> str | None:
    matched, inverted, states, _status = _CONNTRACK.unpack_from(info)
    if (matched, inverted) != (1, 0) or not states or states & ~sum(_STATES):
        return None
    return f"--ctstate {','.join(name for bit, name in _STATES.items() if states & bit)}"


_STATISTIC = struct.Struct("=2HI")


def _statistic(info: bytes) -> str | None:
    mode, inverted, probability = _STATISTIC.unpack_from(info)
    return None if mode or inverted else f"--mode random --probability {probability / 0x80000000:.11f}"


_RANGE = struct.Struct("=2I4s4s2s2s")  # nf_nat_ipv4_multi_range_compat
_RANGE_2 = struct.Struct("=I4s12s4s12s2s2s")  # nf_nat_range, and the beginning of nf_nat_range2


def _old_range(info: bytes) -> _Range | None:
    size, flags, *values = _RANGE.unpack_from(info)
    return None if size != 1 or _rest(info, _RANGE) else (flags, *values)


def _new_range(info: bytes) -> _Range | None:
    flags, first, more, last, too, least, most = _RANGE_2.unpack_from(info)
    return None if any(more + too) or _rest(info, _RANGE_2) else (flags, first, last, least, most)


def _nat(option: str, parse: Callable[[bytes], _Range | None]) -> Callable[[bytes], str | None]:
    """Return the words of a target that changes an address, or a port, or both."""

    def tell(info: bytes) -> str | None:
        found = parse(info)
        if found is None or found[0] & ~(_ADDRESS | _PORTS):
            return None
        flags, *values = found
        words = [""]
        if flags & _ADDRESS:
            words = ["-".join(dict.fromkeys(str(ipaddress.IPv4Address(each)) for each in values[:2]))]
        if flags & _PORTS:
            words.append("-".join(dict.fromkeys(str(int.from_bytes(each, "big")) for each in values[2:])))
        return f"{option} {':'.join(words) if option == '--to-destination' else words[-1]}" if flags else ""

    return tell


_MATCHES: dict[str, dict[int, Callable[[bytes], str | None]]] = {
    "tcp": {0: _tcp},
    "udp": {0: _udp},
    "owner": {1: _owner},
    "comment": {0: _comment},
    "conntrack": {3: _conntrack},
    "statistic": {0: _statistic},
}
_TARGETS: dict[str, dict[int, Callable[[bytes], str | None]]] = {
    "REDIRECT": {0: _nat("--to-ports", _old_range)},
    "MASQUERADE": {0: _nat("--to-ports", _old_range)},
    "DNAT": {
        0: _nat("--to-destination", _old_range),
        1: _nat("--to-destination", _new_range),
        2: _nat("--to-destination", _new_range),
    },
}
