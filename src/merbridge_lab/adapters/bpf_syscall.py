"""Call bpf(2) directly: read and undo what is loaded, attached and pinned, without BCC or libbpf.

Every function raises OSError with the kernel's errno and a text that names what was tried.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.system_call import system_call

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SYSCALL = {"x86_64": 321, "aarch64": 280}

# enum bpf_cmd
MAP_CREATE, PROG_LOAD, BTF_LOAD = 0, 5, 18
_OBJ_PIN, _OBJ_GET, _PROG_ATTACH, _PROG_DETACH, _TEST_RUN = 6, 7, 8, 9, 10
_INFO, _PROG_QUERY = 15, 16
_MAP_LOOKUP_BATCH = 24
_LINK_CREATE, _LINK_UPDATE, _ENABLE_STATS, _LINK_DETACH = 28, 29, 32, 34
#: Objects with ids: (command for the next id, command for a descriptor).
_IDS = {"prog": (11, 13), "map": (12, 14), "link": (31, 30)}

# enum bpf_prog_type
PROG_SOCK_OPS, PROG_SK_MSG, PROG_RAW_TRACEPOINT = 13, 16, 17
PROG_CGROUP_SOCK_ADDR, PROG_CGROUP_SOCKOPT, PROG_SK_LOOKUP = 18, 25, 30
PROG_TYPES = {
    PROG_SOCK_OPS: "sock_ops", PROG_SK_MSG: "sk_msg", PROG_RAW_TRACEPOINT: "raw_tracepoint",
    PROG_CGROUP_SOCK_ADDR: "cgroup_sock_addr", PROG_CGROUP_SOCKOPT: "cgroup_sockopt", PROG_SK_LOOKUP: "sk_lookup",
}  # fmt: skip

# enum bpf_attach_type
CGROUP_SOCK_OPS, SK_MSG_VERDICT = 3, 7
CGROUP_INET4_BIND, CGROUP_INET4_CONNECT, CGROUP_INET6_CONNECT = 8, 10, 11
CGROUP_UDP4_SENDMSG, CGROUP_UDP4_RECVMSG = 14, 19
CGROUP_GETSOCKOPT = 21
CGROUP_INET4_GETPEERNAME, CGROUP_INET6_GETPEERNAME = 29, 30
SK_LOOKUP = 36
SK_SKB_TYPES = {4: "sk_skb stream parser", 5: "sk_skb stream verdict", 38: "sk_skb verdict"}
FLOW_DISSECTOR = 17
TCX = {46: "tcx ingress", 47: "tcx egress"}
NETKIT = {54: "netkit primary", 55: "netkit peer"}
PROG_SK_SKB = 14

_LINK_CGROUP, _LINK_NETNS = 3, 5
LINK_NETFILTER = 10
#: Query what runs on a cgroup, even if it is attached to a cgroup above.
QUERY_EFFECTIVE = 1
_INFO_BYTES = 256
_LSM_CGROUP = 43
_ATTRIBUTE = 512
#: How long a link with a number may take until it can be opened, in seconds.
_BEING_MADE = 0.5
_ALLOW_OVERRIDE, _ALLOW_MULTI = 1, 2


def call(command: int, attr: bytes, what: str) -> tuple[int, bytes]:
    """Call bpf(2); return its result and what the kernel wrote into the attribute."""
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"{what}: bpf(2) has no known number on {platform.machine()}")
    # Newer kernels write into the part of the attribute that they know (6.6: at byte 56), whatever length we pass.
    room = ctypes.create_string_buffer(attr, _ATTRIBUTE)
    try:
        return system_call(number, command, room, max(len(attr), 8)), room.raw
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror}") from None


def address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Return the address of a buffer in memory, for an attribute of bpf(2)."""
    return ctypes.addressof(buffer)


class Map(NamedTuple):
    """What the kernel reports about a map; `btf_id` is 0 if it was loaded without types."""

    id: int
    type: int
    name: str
    key_size: int
    value_size: int
    max_entries: int
    btf_id: int


class Prog(NamedTuple):
    """What the kernel reports about a program; the run statistics count while statistics are enabled.

    Programs and maps that were loaded together share a `btf_id`, the types that they were loaded with; 0 is none.
    """

    id: int
    type: int
    name: str
    tag: str
    run_time_ns: int
    run_count: int
    map_ids: tuple[int, ...]
    btf_id: int


class Link(NamedTuple):
    """What the kernel reports about a link; `target` is a cgroup id or a network namespace's inode, 0 if it is gone."""

    id: int
    type: int
    prog_id: int
    target: int
    attach_type: int


def _info(fd: int, room: ctypes.Array[ctypes.c_char], what: str) -> bytes:
    call(_INFO, struct.pack("=IIQ", fd, len(room), address(room)), what)
    return room.raw


def map_info(fd: int) -> Map:
    """Describe the map behind `fd`."""
    raw = _info(fd, ctypes.create_string_buffer(_INFO_BYTES), "look at a map")
    kind, number, key, value, entries, _, name = struct.unpack_from("=6I16s", raw)
    (btf,) = struct.unpack_from("=I", raw, 64)
    return Map(number, kind, name.rstrip(b"\0").decode(), key, value, entries, btf)


def map_flags(fd: int) -> int:
    """Return the flags (BPF_F_…) that the map behind `fd` was created with."""
    raw = _info(fd, ctypes.create_string_buffer(_INFO_BYTES), "look at a map")
    return int(struct.unpack_from("=I", raw, 20)[0])


def is_frozen(fd: int) -> bool:
    """Report whether only programs may still write the map behind `fd` (BPF_MAP_FREEZE), permanently."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:  # noqa: PTH123 - bpf_map_info does not tell
        return any(line.split() == ["frozen:", "1"] for line in file)


def prog_info(fd: int) -> Prog:
    """Describe the program behind `fd`."""
    ids = (ctypes.c_uint32 * 64)()
    room = ctypes.create_string_buffer(_INFO_BYTES)
    struct.pack_into("=I", room, 52, len(ids))
    struct.pack_into("=Q", room, 56, ctypes.addressof(ids))
    raw = _info(fd, room, "look at a program")
    kind, number, tag = struct.unpack_from("=II8s", raw)
    (count,) = struct.unpack_from("=I", raw, 52)
    (name,) = struct.unpack_from("=16s", raw, 64)
    (btf,) = struct.unpack_from("=I", raw, 128)
    nanoseconds, runs = struct.unpack_from("=QQ", raw, 192)
    return Prog(number, kind, name.rstrip(b"\0").decode(), tag.hex(), nanoseconds, runs, tuple(ids[:count]), btf)


def link_info(fd: int) -> Link:
    """Describe the link behind `fd`."""
    raw = _info(fd, ctypes.create_string_buffer(_INFO_BYTES), "look at a link")
    kind, number, prog = struct.unpack_from("=III", raw)
    target, attach_type = 0, -1
    if kind == _LINK_CGROUP:
        target, attach_type = struct.unpack_from("=QI", raw, 16)
    elif kind == _LINK_NETNS:
        target, attach_type = struct.unpack_from("=II", raw, 16)
    return Link(number, kind, prog, target, attach_type)


@change("pin")
def pin(fd: int, path: Path) -> None:
    """Keep a map, program or link alive under `path` on a bpffs."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    call(_OBJ_PIN, struct.pack("=QII", address(name), fd, 0), f"pin {path}")


def pinned(path: Path) -> int:
    """Return a descriptor of what is pinned at `path`; the caller closes it."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return call(_OBJ_GET, struct.pack("=QII", address(name), 0, 0), f"open {path}")[0]


def ids(kind: str) -> Iterator[int]:
    """Iterate over the ids of every loaded `prog`, `map` or `link`."""
    at = 0
    while True:
        try:
            raw = call(_IDS[kind][0], struct.pack("=III", at, 0, 0), f"list {kind}s")[1]
        except FileNotFoundError:
            return
        at = struct.unpack_from("=I", raw, 4)[0]
        yield at


def by_id(kind: str, number: int) -> int:
    """Return a descriptor of a loaded `prog`, `map` or `link`; the caller closes it. Wait for a link being made."""
    deadline = time.monotonic() + _BEING_MADE
    while True:
        try:
            return call(_IDS[kind][1], struct.pack("=III", number, 0, 0), f"open {kind} {number}")[0]
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise


@change("attach by a link")
def link_create(prog: int, target: int, attach_type: int) -> int:
    """Attach a program to a cgroup or network namespace.

    It stays attached while the returned descriptor, or a pin, exists.
    """
    return call(_LINK_CREATE, struct.pack("=IIII", prog, target, attach_type, 0), "attach by a link")[0]


@change("update a link")
def link_update(link: int, program: int) -> None:
    """Make a link run another program of the same type from now on; no event is lost in between."""
    call(_LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0), "update a link")


@change("detach a link")
def link_detach(fd: int) -> None:
    """Detach a link from its target, whoever else still holds it (Linux 5.9)."""
    call(_LINK_DETACH, struct.pack("=I", fd), "detach a link")


@change("attach to a map")
def prog_attach(prog: int, target: int, attach_type: int) -> None:
    """Attach a program to a sockhash; it is detached when the map is freed."""
    call(_PROG_ATTACH, struct.pack("=IIIII", target, prog, attach_type, 0, 0), "attach to a map")


@change("detach from a cgroup")
def prog_detach(prog: int, target: int, attach_type: int) -> None:
    """Detach a program that was attached to a cgroup without a link."""
    call(_PROG_DETACH, struct.pack("=IIIII", target, prog, attach_type, 0, 0), "detach from a cgroup")


def attached_progs(target: int, attach_type: int, flags: int = 0) -> list[int]:
    """Return the ids of the programs on a cgroup, network namespace or (Linux 5.18) sockhash.

    For tcx and netkit `target` is the number of an interface in the caller's network namespace.
    """
    return _query(target, attach_type, flags)[1]


def is_exclusive(cgroup: int, attach_type: int) -> bool:
    """Report whether a program on this cgroup forbids others on the cgroups below.

    This is the case if it was attached with neither BPF_F_ALLOW_MULTI nor BPF_F_ALLOW_OVERRIDE.
    """
    how, programs = _query(cgroup, attach_type)
    return bool(programs) and not how & (_ALLOW_MULTI | _ALLOW_OVERRIDE)


def _query(target: int, attach_type: int, flags: int = 0) -> tuple[int, list[int]]:
    """Return how programs may be attached (BPF_F_ALLOW_…), and the ids of those that are."""
    found, how = (ctypes.c_uint32 * 64)(), (ctypes.c_uint32 * 64)()
    # For LSM programs, the kernel reports what is attached only if the query also asks how.
    asked = ctypes.addressof(how) if attach_type == _LSM_CGROUP and not flags else 0
    attr = struct.pack("=IIIIQIIQ", target, attach_type, flags, 0, ctypes.addressof(found), len(found), 0, asked)
    raw = call(_PROG_QUERY, attr, "ask what is attached")[1]
    return struct.unpack_from("=I", raw, 12)[0], list(found[: struct.unpack_from("=I", raw, 24)[0]])


def test_run(prog: int, args: tuple[int, ...]) -> int:
    """Run a raw tracepoint program now, with these u64 arguments, and return its result (Linux 5.10)."""
    room = (ctypes.c_uint64 * len(args))(*args)
    attr = struct.pack("=IIIIQQIIIIQQ", prog, 0, 0, 0, 0, 0, 0, 0, ctypes.sizeof(room), 0, ctypes.addressof(room), 0)
    raw = call(_TEST_RUN, attr, "run a program")[1]
    return int(struct.unpack_from("=I", raw, 4)[0])


def lookup_batch(fd: int, start: int, rooms: tuple[ctypes.Array[ctypes.c_char], ...], size: int) -> tuple[int, bool]:
    """Read up to `size` entries of a map (Linux 5.6): return how many, and whether there are no more.

    `start` is the address of where the call before has ended, 0 at first. `rooms` are for where this one ends, for the
    keys and for the values.
    """
    attr = struct.pack("=QQQQIIQQ", start, *map(address, rooms), size, fd, 0, 0)
    room = ctypes.create_string_buffer(attr, _ATTRIBUTE)
    is_last = False
    try:
        system_call(_SYSCALL[platform.machine()], _MAP_LOOKUP_BATCH, room, len(attr))
    except FileNotFoundError:
        is_last = True
    except OSError as error:
        raise OSError(error.errno, f"read a map: {error.strerror}") from None
    return struct.unpack_from("=I", room, 32)[0], is_last


def enable_stats() -> int:
    """Count runs and run time of every program while the returned descriptor is open (Linux 5.8)."""
    return call(_ENABLE_STATS, struct.pack("=I", 0), "enable run statistics")[0]
