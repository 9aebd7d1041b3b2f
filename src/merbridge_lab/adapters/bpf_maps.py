"""The entries of BPF maps, through bpf(2): read, write, delete and list them.

Every function raises OSError with the kernel's errno and a text that names what was tried.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from merbridge_lab.adapters import bpf_syscall
from merbridge_lab.adapters.change import change

# enum bpf_cmd
_MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT = 1, 2, 3, 4

_ENOTSUPP = 524  # the kernel's own, that has no name outside

#: How many entries one call reads at first; the kernel asks for more room if that many share a bucket.
_BATCH = 4096
#: How often a walk may begin again because the entry it was at was removed.
_RESTARTS = 100


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
    """Return the keys of a map, each once; those that come or go meanwhile may be missing, no others."""
    found: dict[bytes, None] = {}
    after = ctypes.create_string_buffer(size)
    room = ctypes.create_string_buffer(size)
    start, steps = 0, 0
    while True:
        try:
            bpf_syscall.call(
                _MAP_NEXT, struct.pack("=IIQQQ", fd, 0, start, bpf_syscall.address(room), 0), "walk through a map"
            )
        except FileNotFoundError:
            return list(found)
        # If the entry that the walk is at was removed, the kernel begins again with the first one.
        steps += 1
        if steps > (len(found) + 1) * _RESTARTS:
            return list(found)
        found[room.raw] = None
        after.raw = room.raw
        start = bpf_syscall.address(after)


def entries(fd: int, key_size: int, value_size: int) -> dict[bytes, bytes]:
    """Return the entries of a hash, or of an array; those that come or go meanwhile may be missing, no others."""
    try:
        return _batches(fd, key_size, value_size)
    except OSError as failed:
        if failed.errno not in (errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP):
            raise
    found = {key: lookup(fd, key, value_size) for key in keys(fd, key_size)}  # before Linux 5.6
    return {key: value for key, value in found.items() if value is not None}


def _batches(fd: int, key_size: int, value_size: int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    begin, then = ctypes.create_string_buffer(max(key_size, 8)), ctypes.create_string_buffer(max(key_size, 8))
    start, batch = 0, _BATCH
    while True:
        names, values = (ctypes.create_string_buffer(batch * size) for size in (key_size, value_size))
        try:
            count, is_last = bpf_syscall.lookup_batch(fd, start, (then, names, values), batch)
        except OSError as failed:
            if failed.errno != errno.ENOSPC:
                raise
            batch *= 2
            continue
        left, right = names.raw, values.raw
        for each in range(count):
            key = left[each * key_size : (each + 1) * key_size]
            found[key] = right[each * value_size : (each + 1) * value_size]
        if is_last:
            return found
        begin.raw = then.raw
        start = bpf_syscall.address(begin)


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
