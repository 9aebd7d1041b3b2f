"""Test which BPF programs, maps and helpers the kernel accepts, by loading the smallest possible ones.

bpf(2) is called directly: BCC takes half a second to load, and a machine without it should still learn what its kernel
can do. Everything loaded is freed at once with its file descriptor; nothing is attached or pinned.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from typing import NamedTuple

from merbridge_lab.adapters import bpf_syscall, ring_buffer

_GET_NETNS_COOKIE = 122

_PERCPU_HASH, _SOCKHASH, _SK_STORAGE = 5, 18, 24
_NO_PREALLOC = 1


class Program(NamedTuple):
    """A kind of program, with the attach type if the kernel requires it for loading."""

    kind: int
    attach: int = 0


PROGRAMS = {
    "bpf.connect4": Program(bpf_syscall.PROG_CGROUP_SOCK_ADDR, bpf_syscall.CGROUP_INET4_CONNECT),
    "bpf.connect6": Program(bpf_syscall.PROG_CGROUP_SOCK_ADDR, bpf_syscall.CGROUP_INET6_CONNECT),
    "bpf.getpeername4": Program(bpf_syscall.PROG_CGROUP_SOCK_ADDR, bpf_syscall.CGROUP_INET4_GETPEERNAME),
    "bpf.getsockopt": Program(bpf_syscall.PROG_CGROUP_SOCKOPT, bpf_syscall.CGROUP_GETSOCKOPT),
    "bpf.sock_ops": Program(bpf_syscall.PROG_SOCK_OPS),
    "bpf.sk_msg": Program(bpf_syscall.PROG_SK_MSG),
    "bpf.sk_lookup": Program(bpf_syscall.PROG_SK_LOOKUP, bpf_syscall.SK_LOOKUP),
    "bpf.raw_tracepoint": Program(bpf_syscall.PROG_RAW_TRACEPOINT),
}

MAPS = ("bpf.sockhash", "bpf.sk_storage", "bpf.percpu_hash", "bpf.ring_buffer")

#: Programs that must know the network namespace that they run for.
COOKIE_IN = ("bpf.connect4", "bpf.connect6", "bpf.sock_ops", "bpf.sk_msg", "bpf.getsockopt")


def _instruction(code: int, register: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, register, 0, value)


#: `return 1`, which every kind of program here may do.
_RETURN_ONE = _instruction(0xB7, 0, 1) + _instruction(0x95)
_CALL_COOKIE = _instruction(0x85, 0, _GET_NETNS_COOKIE)


def load(name: str, *, cookie: bool = False) -> None:
    """Load the smallest program of a kind in PROGRAMS; with `cookie`, one that reads its namespace's cookie.

    Raise OSError: EINVAL if the kernel does not know it, EPERM if it is not allowed.
    """
    program = PROGRAMS[name]
    code = ctypes.create_string_buffer((_CALL_COOKIE if cookie else b"") + _RETURN_ONE)
    # Not GPL, so that it depends on nothing beyond what it states.
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        program.kind,
        len(code) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        0,
        0,
        0,
        0,
        0,
        b"merlab_probe",
        0,
        program.attach,
    )
    os.close(bpf_syscall.call(bpf_syscall.PROG_LOAD, attributes, "load a program")[0])


def create(name: str) -> None:
    """Create the smallest map of a kind in MAPS. Raises OSError."""
    if name == "bpf.sk_storage":
        types = _one_integer_type()
        try:
            os.close(_map(_SK_STORAGE, entries=0, flags=_NO_PREALLOC, types=types))
        finally:
            os.close(types)
    elif name == "bpf.ring_buffer":
        os.close(ring_buffer.create(mmap.PAGESIZE, "merlab_probe"))
    elif name == "bpf.sockhash":
        os.close(_map(_SOCKHASH))
    else:
        os.close(_map(_PERCPU_HASH))


def _map(kind: int, *, entries: int = 1, flags: int = 0, types: int = 0) -> int:
    of_type = 1 if types else 0
    attributes = struct.pack(
        "=IIIIIII16sIIII", kind, 4, 4, entries, flags, 0, 0, b"merlab_probe", 0, types, of_type, of_type
    )
    return bpf_syscall.call(bpf_syscall.MAP_CREATE, attributes, "create a map")[0]


def _one_integer_type() -> int:
    """Load BTF that knows `int` and nothing else: socket storage is only created for values with a type."""
    integer = struct.pack("=IIII", 1, 1 << 24, 4, 1 << 24 | 32)
    strings = b"\0int\0"
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(integer), len(integer), len(strings))
    blob = ctypes.create_string_buffer(header + integer + strings, 24 + len(integer) + len(strings))
    attributes = struct.pack("=QQIII", ctypes.addressof(blob), 0, len(blob), 0, 0)
    return bpf_syscall.call(bpf_syscall.BTF_LOAD, attributes, "load types")[0]


def why(error: OSError) -> str:
    """Describe in words what an errno of bpf(2) means."""
    meanings = {
        errno.EINVAL: "not known to this kernel",
        errno.ENOSYS: "this kernel has no bpf(2)",
        errno.EPERM: "not permitted",
        errno.EACCES: "not permitted",
        errno.ENOTSUPP if hasattr(errno, "ENOTSUPP") else 524: "not built into this kernel",
    }
    return meanings.get(error.errno or 0) or (os.strerror(error.errno) if error.errno else str(error))
