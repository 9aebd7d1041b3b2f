"""The offsets of members of kernel structures, from the kernel's own description in /sys/kernel/btf/vmlinux.

A small reader of BTF (Documentation/bpf/btf.rst): enough to find members of structures, through anonymous ones.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from merbridge_lab.adapters import kernel_features

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_BTF = "BTF (CONFIG_DEBUG_INFO_BTF)"

_HEADER = struct.Struct("<HBBIIIII")
_STRUCT, _UNION = 4, 5
#: How many bytes follow the 12 of a type, by kind: (fixed, per element). Kinds not named here have none.
_TAIL = {
    1: (4, 0),
    3: (12, 0),
    4: (0, 12),
    5: (0, 12),
    6: (0, 8),
    13: (0, 8),
    14: (4, 0),
    15: (0, 12),
    17: (4, 0),
    19: (0, 12),
}
#: The members of `struct kernel` that are offsets: of which member of which structure of the kernel.
_MEMBERS = {
    "sk_cookie": ("sock_common", "skc_cookie"),
    "sk_uid": ("sock", "sk_uid"),
    "sk_ipv6only": ("sock_common", "skc_ipv6only"),
    "sk_rmem_alloc": ("sock", "sk_backlog.rmem_alloc"),
    "sk_rcvbuf": ("sock", "sk_rcvbuf"),
    "sk_userlocks": ("sock", "sk_userlocks"),
    "sk_user_data": ("sock", "sk_user_data"),
    "sk_owned": ("sock", "sk_lock.owned"),
    "sk_wq": ("sock", "sk_wq"),
    "sk_ulp_ops": ("inet_connection_sock", "icsk_ulp_ops"),
    "tcp_write_seq": ("tcp_sock", "write_seq"),
    "tcp_copied_seq": ("tcp_sock", "copied_seq"),
    "wq_head": ("socket_wq", "wait.head"),
    "waiter_func": ("wait_queue_entry", "func"),
    "waiter_entry": ("wait_queue_entry", "entry"),
    "psock_ingress_msg": ("sk_psock", "ingress_msg"),
    "psock_refcnt": ("sk_psock", "refcnt"),
    "task_pid": ("task_struct", "pid"),
    "task_comm": ("task_struct", "comm"),
}
#: Those that a kernel without memory cgroups lacks: all or none.
_OF_MEMORY = {
    "sk_forward_alloc": ("sock", "sk_forward_alloc"),
    "sk_memcg": ("sock", "sk_memcg"),
    "memcg_memory": ("mem_cgroup", "memory"),
    "counter_usage": ("page_counter", "usage"),
    "counter_max": ("page_counter", "max"),
    "counter_parent": ("page_counter", "parent"),
}
_BIT_FIELDS = ("sk_ipv6only", "sk_userlocks")


class Member(NamedTuple):
    """The position of a member: byte offset and, for a bit field, how far to shift that byte to the right."""

    offset: int
    shift: int


class Btf:
    """The types of one BTF blob."""

    def __init__(self, blob: bytes) -> None:
        if len(blob) < _HEADER.size:
            raise ValueError("too short to be BTF")
        magic, _, _, header, types, types_len, strings, strings_len = _HEADER.unpack_from(blob)
        if magic != 0xEB9F:  # noqa: PLR2004  (BTF_MAGIC)
            raise ValueError("not BTF, or of the other byte order")
        self._blob = blob
        self._strings = (header + strings, header + strings + strings_len)
        self._at: list[int] = [0]  # of each type, by id
        self._structs: dict[int, list[int]] = {}  # ids of structures by offset of their name
        at, end = header + types, header + types + types_len
        read = struct.Struct("<II").unpack_from
        tails, places = _TAIL, self._at
        while at < end:
            name, info = read(blob, at)
            kind = info >> 24 & 31
            if kind == _STRUCT:
                self._structs.setdefault(name, []).append(len(places))
            places.append(at)
            fixed, each = tails.get(kind, (0, 0))
            at += 12 + fixed + each * (info & 0xFFFF)

    def member(self, struct_name: str, member: str) -> Member:
        """Find `member` (dots lead into named members) of a structure. Raises KeyError."""
        for type_id in self._named(struct_name):
            bits = self._find(type_id, member.split("."))
            if bits is not None:
                return Member(bits // 8, bits % 8)
        raise KeyError(f"struct {struct_name} has no member {member}")

    def _named(self, name: str) -> list[int]:
        start, end = self._strings
        at = self._blob.find(b"\0" + name.encode() + b"\0", start, end)
        return self._structs.get(at + 1 - start, []) if at >= 0 else []

    def _string(self, offset: int) -> str:
        at = self._strings[0] + offset
        return self._blob[at : self._blob.index(b"\0", at)].decode()

    def _resolve(self, type_id: int) -> int:
        """Follow typedef, volatile, const, restrict and type tags."""
        while True:
            at = self._at[type_id]
            _, info, target = struct.unpack_from("<III", self._blob, at)
            if info >> 24 & 31 not in (8, 9, 10, 11, 18):
                return type_id
            type_id = target

    def _find(self, type_id: int, path: list[str]) -> int | None:
        offset: int
        at = self._at[self._resolve(type_id)]
        _, info = struct.unpack_from("<II", self._blob, at)
        if info >> 24 & 31 not in (_STRUCT, _UNION):
            return None
        has_bit_fields = info >> 31
        for number in range(info & 0xFFFF):
            name, kind, offset = struct.unpack_from("<III", self._blob, at + 12 + 12 * number)
            bits = offset & 0xFFFFFF if has_bit_fields else offset
            text = self._string(name)
            if text == path[0] and len(path) == 1:
                return bits
            rest = path if not text else path[1:] if text == path[0] else None
            inner = self._find(kind, rest) if rest else None
            if inner is not None:
                return bits + inner
        return None


def offsets(blob: Path = VMLINUX) -> dict[str, int]:
    """Return what `struct kernel` has of the kernel's structures, by the names of its members.

    Raise UnsupportedFeatureError without BTF or a member.
    """
    try:
        btf = Btf(blob.read_bytes())
    except OSError as missing:
        raise kernel_features.cannot("kernel.btf", f"no {blob}", named=_BTF) from missing
    except ValueError as wrong:
        raise kernel_features.cannot("kernel.btf", f"{blob}: {wrong}", named=_BTF) from wrong
    try:
        found = {name: btf.member(*where) for name, where in _MEMBERS.items()}
    except KeyError as missing:
        named = "redirecting between sockets"
        raise kernel_features.cannot("kernel.version", str(missing.args[0]), named=named) from missing
    try:
        found |= {name: btf.member(*where) for name, where in _OF_MEMORY.items()}
    except KeyError:
        found |= dict.fromkeys(_OF_MEMORY, Member(0, 0))
    return {name: member.offset for name, member in found.items()} | {
        f"{name}_shift": found[name].shift for name in _BIT_FIELDS
    }
