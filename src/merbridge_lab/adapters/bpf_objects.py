"""Load types, maps and programs by their names through bpf(2), without BCC or libbpf.

Every function returns a descriptor, which the caller closes; what is not pinned or attached goes with it. All raise
OSError with the kernel's errno and a text that names what was tried.
"""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple

from merbridge_lab.adapters import bpf_syscall
from merbridge_lab.text import lines_of

_NAME_BYTES = 15
_LOG_BYTES = 1 << 16
#: BPF_LOG_STATS: errors and statistics, and not every instruction, which could fill any buffer (Linux 5.2).
_LOG_ERRORS = 4
_FUNC_INFO = "=II"
#: What the verifier writes after the reason of a refusal.
_STATISTICS = ("processed ", "verification time ", "stack depth ")


class RefusedError(OSError):
    """The kernel does not load a program; `log` is the verifier's reason, "" if it gave none."""

    log: str = ""


#: BPF_MAP_TYPE_LPM_TRIE
LPM_TRIE = 11
#: BPF_MAP_TYPE_ARRAY_OF_MAPS
ARRAY_OF_MAPS = 12


class MapShape(NamedTuple):
    """What a map is created with, and what the kernel reports about it; `typed` if its key and value have types."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    typed: bool


class Types(NamedTuple):
    """Types that were loaded, and the numbers of those in use: of a key and a value, or of a function."""

    fd: int
    numbers: tuple[int, ...]


def load_types(blob: bytes) -> int:
    """Load BTF."""
    room = ctypes.create_string_buffer(blob, len(blob))
    attributes = struct.pack("=QQIII", ctypes.addressof(room), 0, len(blob), 0, 0)
    return bpf_syscall.call(bpf_syscall.BTF_LOAD, attributes, "load types")[0]


def create_map(shape: MapShape, types: Types | None, inner: int = 0) -> int:
    """Create a map; with `types`, those of its key and value. Maps like `inner` can be put into an array of maps."""
    attributes = struct.pack(
        "=IIIIIII16sIIII",
        shape.type,
        shape.key_size,
        shape.value_size,
        shape.max_entries,
        shape.flags,
        inner,
        0,
        shape.name.encode()[:_NAME_BYTES],
        0,
        *((types.fd, *types.numbers) if types else (0, 0, 0)),
    )
    return bpf_syscall.call(bpf_syscall.MAP_CREATE, attributes, f"create the map {shape.name}")[0]


def map_shape(fd: int, name: str) -> MapShape:
    """Return what the map behind `fd` was created with, under its full name."""
    info = bpf_syscall.map_info(fd)
    flags = bpf_syscall.map_flags(fd)
    return MapShape(name, info.type, info.key_size, info.value_size, info.max_entries, flags, info.btf_id != 0)


def load_program(name: str, kind: int, attach_type: int, code: bytes, license_: str, types: Types) -> int:
    """Load a program of one function, whose type is the first of `types`. Raises RefusedError with the reason."""
    room = ctypes.create_string_buffer(code, len(code))
    text = ctypes.create_string_buffer(license_.encode())
    log = ctypes.create_string_buffer(_LOG_BYTES)
    function = ctypes.create_string_buffer(struct.pack(_FUNC_INFO, 0, types.numbers[0]), struct.calcsize(_FUNC_INFO))
    attributes = struct.pack(
        "=IIQQIIQII16sIIIIQI",
        kind,
        len(code) // 8,
        ctypes.addressof(room),
        ctypes.addressof(text),
        _LOG_ERRORS,
        len(log),
        ctypes.addressof(log),
        0,
        0,
        name.encode()[:_NAME_BYTES],
        0,
        max(attach_type, 0),
        types.fd,
        len(function),
        ctypes.addressof(function),
        1,
    )
    try:
        return bpf_syscall.call(bpf_syscall.PROG_LOAD, attributes, f"load the program {name}")[0]
    except OSError as error:
        refused = RefusedError(error.errno, error.strerror)
        # The verifier's reason is the last line before its statistics.
        said = [line for line in lines_of(log.value.decode(errors="replace")) if not line.startswith(_STATISTICS)]
        refused.log = said[-1] if said else ""
        raise refused from None
