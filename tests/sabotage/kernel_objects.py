"""BPF objects of our own for sabotage: programs that do nothing, links turned over to them, maps that count nothing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# enum bpf_cmd
_MAP_CREATE, _PROG_LOAD, _PROG_DETACH, _LINK_UPDATE, _RAW_TRACEPOINT_OPEN = 0, 5, 9, 29, 17
_INSN = struct.Struct("=BBhi")


def _bpf(command: int, attr: bytes, what: str) -> int:
    return bpf._bpf(command, attr, what)[0]


def nothing(kind: int, attach_type: int = -1, *, name: str = "nothing", verdict: int = 1) -> int:
    """Load `return verdict`, by which a hook goes on as if it were not there; gives a descriptor."""
    code = _INSN.pack(0xB7, 0, 0, verdict) + _INSN.pack(0x95, 0, 0, 0)  # r0 = verdict; exit
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQIIQII16sII",
        kind, len(code) // _INSN.size, ctypes.addressof(instructions), ctypes.addressof(licence),
        0, 0, 0, 0, 0, name.encode()[:15], 0, max(attach_type, 0),
    )  # fmt: skip
    return _bpf(_PROG_LOAD, attr, f"load {name}")


def update_link(link: int, program: int) -> None:
    _bpf(_LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0), "update a link")


def detach_from_map(program: int, target: int) -> None:
    _bpf(_PROG_DETACH, struct.pack("=III", target, program, bpf.SK_MSG_VERDICT), "detach from a map")


def open_tracepoint(program: int, name: str) -> int:
    text = ctypes.create_string_buffer(name.encode())
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("=QI", ctypes.addressof(text), program), f"trace {name}")


def map_like(fd: int) -> int:
    """Make a map that has the name, type and sizes of the one behind `fd`, and nothing in it."""
    seen = bpf.map_info(fd)
    attr = struct.pack(
        "=IIIIIII16s", seen.type, seen.key_size, seen.value_size, seen.max_entries, 0, 0, 0, seen.name.encode()
    )
    return _bpf(_MAP_CREATE, attr, f"make {seen.name}")


@contextlib.contextmanager
def held(fd: int) -> Iterator[int]:
    """Close `fd` when the block ends."""
    try:
        yield fd
    finally:
        os.close(fd)


def pin_instead(fd: int, path: Path) -> None:
    path.unlink()
    bpf.pin(fd, path)
