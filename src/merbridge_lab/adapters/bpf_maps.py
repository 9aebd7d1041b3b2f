"""The entries of BPF maps, through bpf(2): read, write, delete and list them.

Every function raises OSError with the kernel's errno and a text that names what was tried.
"""

from __future__ import annotations

import ctypes
import struct

from merbridge_lab.adapters import bpf_syscall
from merbridge_lab.adapters.change import change

# enum bpf_cmd
_MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT = 1, 2, 3, 4


def _element(command: int, fd: int, key: bytes, value: int, what: str) -> None:
    room = ctypes.create_string_buffer(key, max(len(key), 1))
    bpf_syscall.call(command, struct.pack("=IIQQQ", fd, 0, bpf_syscall.address(room), value, 0), what)


def lookup(fd: int, key: bytes, size: int) -> bytes | None:
    """Return the value under `key`, or None; `size` counts all CPUs for a per-CPU map."""
    value = ctypes.create_string_buffer(size)
    try:
        _element(_MAP_LOOKUP, fd, key, bpf_syscall.address(value), "look up a map entry")
    except FileNotFoundError:
        return None
    return value.raw


@change("update a map entry")
def update(fd: int, key: bytes, value: bytes) -> None:
    """Create or replace an entry."""
    room = ctypes.create_string_buffer(value, len(value))
    _element(_MAP_UPDATE, fd, key, bpf_syscall.address(room), "update a map entry")


@change("delete a map entry")
def delete(fd: int, key: bytes) -> bool:
    """Remove an entry; False if there was none (a sockhash says EINVAL for that on some kernels)."""
    try:
        _element(_MAP_DELETE, fd, key, 0, "delete a map entry")
    except FileNotFoundError:
        return False
    return True


def keys(fd: int, size: int) -> list[bytes]:
    """Return the keys of a map, each once; entries that come and go meanwhile may be missing."""
    found: dict[bytes, None] = {}
    after = ctypes.create_string_buffer(size)
    room = ctypes.create_string_buffer(size)
    start = 0
    while True:
        try:
            bpf_syscall.call(
                _MAP_NEXT, struct.pack("=IIQQQ", fd, 0, start, bpf_syscall.address(room), 0), "walk through a map"
            )
        except FileNotFoundError:
            return list(found)
        if room.raw in found:  # if an entry is removed meanwhile, the iteration starts again
            return list(found)
        found[room.raw] = None
        after.raw = room.raw
        start = bpf_syscall.address(after)


def possible_cpus() -> int:
    """Return how many values a per-CPU map holds for each key."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:  # noqa: PTH123
        last = file.read().strip().split(",")[-1].split("-")[-1]
    return int(last) + 1


def per_cpu(fd: int, key: bytes, size: int) -> list[bytes] | None:
    """Return the value of each CPU under `key`, or None; the kernel rounds each up to 8 bytes."""
    step = (size + 7) // 8 * 8
    raw = lookup(fd, key, step * possible_cpus())
    return None if raw is None else [raw[at : at + size] for at in range(0, len(raw), step)]
