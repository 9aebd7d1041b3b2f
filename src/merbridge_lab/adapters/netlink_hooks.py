"""What is attached to the links and hooks of a network namespace: XDP, tc, tcx, netfilter's programs; and its sockets.

It uses plain netlink: these are dumps of a few messages, and pyroute2 lacks half of them. Every function works in the
network namespace of the calling thread (netns.run_inside), and raises OSError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from merbridge_lab.adapters import bpf_syscall

if TYPE_CHECKING:
    from collections.abc import Iterator

# <linux/netlink.h>, <linux/rtnetlink.h>
_ROUTE, _SOCK_DIAG, _NETFILTER = 0, 4, 12
_REQUEST, _REQUEST_DUMP, _INTERRUPTED = 0x1, 0x301, 0x10
_ERROR, _DONE = 2, 3
_GETLINK, _GETQDISC, _GETTCLASS, _GETTFILTER, _GETNSID = 18, 38, 42, 46, 90
_NSID, _NSID_FD = 1, 3
_KIND = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_ATTRIBUTE = struct.Struct("=HH")  # length, kind
HEADER, _TCMSG = struct.Struct("=IHHII"), struct.Struct("=BBHiIII")
_ROOM = 1 << 17
_ATTEMPTS = 5
#: The kernel answers at once; in seconds.
_PATIENCE = 5.0

# <linux/if_link.h>, <linux/pkt_sched.h>, <linux/pkt_cls.h>
_ADDRESS, _IFNAME, _LINKINFO, _EXT_MASK, _XDP = 1, 3, 18, 29, 43
_XDP_PROG_IDS = (4, 5, 6, 7)
_TC_KIND, _TC_OPTIONS, _BPF_ID = 1, 2, 11
#: Where the filters of the qdiscs without a queue are: (parent, its name).
_CLSACT = ((0xFFFFFFF2, "ingress"), (0xFFFFFFF3, "egress"))
_INGRESS = ((0xFFFF0000, "ingress"),)

# <linux/sock_diag.h>, <linux/inet_diag.h>
_BY_FAMILY, _COOKIE = 20, 44
_ALL_STATES = 0xFFFFFFFF
#: Sets of states (linux/tcp_states.h): of a socket that waits for the answer to its SYN; and of one that has a
#: connection. What is left of a socket in TIME_WAIT has its cookie, but is none.
SYN_SENT = 1 << 2
CONNECTED = _ALL_STATES & ~(1 << 6 | 1 << 7 | 1 << 10)

# <linux/netfilter/nfnetlink_hook.h>
_HOOK_GET = 12 << 8
_HOOKNUM, _CHAIN_INFO, _INFO_DESC, _INFO_TYPE, _DESC_ID, _IS_BPF = 1, 6, 1, 2, 1, 2
_FAMILIES = {2: "ip", 10: "ip6"}
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")


class Hung(NamedTuple):
    """Something on a link or a netfilter hook: where it is, what it is, and its program's id, 0 for none."""

    where: str
    what: str
    program: int


def pairs(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and content of each attribute in `raw`; the elements of a list are of one kind."""
    at = 0
    while at + _ATTRIBUTE.size <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _KIND, raw[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def attributes(raw: bytes) -> dict[int, bytes]:
    """Return the attributes in `raw` by their kinds."""
    return dict(pairs(raw))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value


def _u32(raw: bytes | None) -> int:
    return int(struct.unpack("=I", raw[:4])[0]) if raw else 0


def _text(raw: bytes | None) -> str:
    return (raw or b"").rstrip(b"\0").decode(errors="replace")


def dump(family: int, kind: int, body: bytes, *, single: bool = False) -> list[bytes]:
    """Return the bodies of the messages of a dump; repeat it if it changed meanwhile. Raises OSError.

    `single` is for a request with one answer: it is no dump, and nothing follows the answer.
    """
    with contextlib.closing(opened(family)) as asked:
        return dump_by(asked, kind, body, single=single)


def opened(family: int) -> socket.socket:
    """Return a netlink socket in the calling thread's network namespace; it stays there. Raises OSError."""
    asked = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
    try:
        asked.settimeout(_PATIENCE)
        asked.bind((0, 0))
    except BaseException:
        asked.close()
        raise
    return asked


def dump_by(asked: socket.socket, kind: int, body: bytes, *, single: bool = False) -> list[bytes]:
    """Return the same as `dump`, asked by a socket that is open already. Raises OSError."""
    for _ in range(_ATTEMPTS):
        found, whole = _dump_once(asked, kind, body, single=single)
        if whole:
            return found
    raise OSError(errno.EAGAIN, "what netlink lists keeps changing")


def _dump_once(asked: socket.socket, kind: int, body: bytes, *, single: bool) -> tuple[list[bytes], bool]:
    found: list[bytes] = []
    whole = True
    asked.send(HEADER.pack(HEADER.size + len(body), kind, _REQUEST if single else _REQUEST_DUMP, 1, 0) + body)
    while True:
        raw, at = asked.recv(_ROOM), 0
        while at + HEADER.size <= len(raw):
            length, told, flags, *_ = HEADER.unpack_from(raw, at)
            content = raw[at + HEADER.size : at + length]
            whole = whole and not flags & _INTERRUPTED
            if told in (_ERROR, _DONE):
                code = -struct.unpack_from("=i", content)[0] if len(content) >= 4 else 0  # noqa: PLR2004
                if code:
                    raise OSError(code, os.strerror(code))
                return found, whole
            found.append(content)
            if single:
                return found, whole
            at += (length + 3) & ~3


class _Link(NamedTuple):
    number: int
    name: str
    kind: str
    xdp: frozenset[int]


def _links() -> list[_Link]:
    without_statistics = _attribute(_EXT_MASK, struct.pack("=I", 8))
    found = []
    for message in dump(_ROUTE, _GETLINK, struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0) + without_statistics):
        told = attributes(message[16:])
        xdp = attributes(told.get(_XDP, b""))
        programs = frozenset(number for each in _XDP_PROG_IDS if (number := _u32(xdp.get(each))))
        kind = _text(attributes(told.get(_LINKINFO, b"")).get(1))
        found.append(_Link(struct.unpack_from("=i", message, 4)[0], _text(told.get(_IFNAME)), kind, programs))
    return found


def on_links() -> list[Hung]:
    """List every XDP program, tc filter (of any kind), tcx and netkit program on every link."""
    links = _links()
    found = _programs(links)
    names = {link.number: link.name for link in links}
    for message in dump(_ROUTE, _GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0, 0, 0)):
        _, _, _, index, handle, _, _ = _TCMSG.unpack_from(message)
        kind = _text(attributes(message[_TCMSG.size :]).get(_TC_KIND))
        for parent, side in _parents(index, handle, kind):
            found += _filters(names.get(index, f"link {index}"), index, parent, side)
    return list(dict.fromkeys(found))


def _fast_programs(link: _Link) -> Iterator[Hung]:
    kinds = bpf_syscall.TCX | (bpf_syscall.NETKIT if link.kind == "netkit" else {})
    for attach_type, what in kinds.items():
        try:
            numbers = bpf_syscall.attached_progs(link.number, attach_type)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENODEV):
                continue  # before Linux 6.6 there is no tcx, so none is attached; or the link has just gone
            raise
        yield from (Hung(link.name, what, number) for number in numbers)


def programs_on_links() -> list[Hung]:
    """List the XDP, tcx and netkit programs on every link: those that a BPF link may have put there."""
    return _programs(_links())


def _programs(links: list[_Link]) -> list[Hung]:
    found = [Hung(link.name, "XDP", number) for link in links for number in sorted(link.xdp)]
    for link in links:
        found += _fast_programs(link)
    return found


def _parents(index: int, handle: int, kind: str) -> tuple[tuple[int, str], ...]:
    """Return the places below a qdisc where filters may be."""
    if kind == "clsact":
        return _CLSACT
    if kind == "ingress":
        return _INGRESS
    classes = dump(_ROUTE, _GETTCLASS, _TCMSG.pack(0, 0, 0, index, 0, 0, 0))
    own = (_TCMSG.unpack_from(each)[4] for each in classes)
    return ((handle, f"qdisc {kind}"), *((each, f"class of {kind}") for each in own if each >> 16 == handle >> 16))


def _filters(name: str, index: int, parent: int, side: str) -> Iterator[Hung]:
    try:
        messages = dump(_ROUTE, _GETTFILTER, _TCMSG.pack(0, 0, 0, index, 0, parent, 0))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENODEV, errno.ENOENT, errno.EOPNOTSUPP):
            return  # a queue that takes no filters, or the link has just gone
        raise
    for message in messages:
        handle = _TCMSG.unpack_from(message)[4]
        told = attributes(message[_TCMSG.size :])
        if handle:  # 0: the head of a chain
            kind = _text(told.get(_TC_KIND))
            program = _u32(attributes(told.get(_TC_OPTIONS, b"")).get(_BPF_ID)) if kind == "bpf" else 0
            yield Hung(name, f"tc {side} filter ({kind})", program)


def on_netfilter() -> list[Hung]:
    """List the BPF programs on netfilter's hooks (Linux 6.4), by nfnetlink_hook (CONFIG_NETFILTER_NETLINK_HOOK)."""
    found = []
    for family, name in _FAMILIES.items():
        for number, hook in enumerate(_HOOKS):
            body = struct.pack("=BBH", family, 0, 0) + _attribute(_HOOKNUM, struct.pack("!I", number))
            for message in dump(_NETFILTER, _HOOK_GET, body):
                info = attributes(attributes(message[4:]).get(_CHAIN_INFO, b""))
                if int.from_bytes(info.get(_INFO_TYPE, b""), "big") == _IS_BPF:
                    program = int.from_bytes(attributes(info.get(_INFO_DESC, b"")).get(_DESC_ID, b""), "big")
                    found.append(Hung(f"{name} {hook}", "netfilter", program))
    return found


def hardware() -> dict[str, str]:
    """Return the hardware address of each link, by name."""
    without_statistics = _attribute(_EXT_MASK, struct.pack("=I", 8))
    found = {}
    for message in dump(_ROUTE, _GETLINK, struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0) + without_statistics):
        told = attributes(message[16:])
        found[_text(told.get(_IFNAME))] = told.get(_ADDRESS, b"").hex(":")
    return found


def number_of(namespace: int) -> int | None:
    """Return the number with which links here refer to the network namespace behind a descriptor; None if none does."""
    body = struct.pack("=B3x", 0) + _attribute(_NSID_FD, struct.pack("=I", namespace))
    (answer,) = dump(_ROUTE, _GETNSID, body, single=True)
    (number,) = struct.unpack("=i", attributes(answer[4:])[_NSID])
    return int(number) if number >= 0 else None


def tcp_cookies(states: int = _ALL_STATES) -> set[int]:
    """Return the cookies of all TCP sockets in these states (CONFIG_INET_DIAG)."""
    found = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        body = struct.pack("=BBBBI48x", family, socket.IPPROTO_TCP, 0, 0, states)
        for message in dump(_SOCK_DIAG, _BY_FAMILY, body):
            low, high = struct.unpack_from("=II", message, _COOKIE)
            found.add(low | high << 32)
    return found
