"""Assemble and load small BPF programs without a compiler, and find out which helpers a kind of program may call."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from typing import NamedTuple

from merbridge_lab.adapters import bpf_syscall

ARRAY, SOCKHASH = 2, 18
#: Flag of bpf_msg_redirect_hash(): into the receive queue of the other socket, not out of it.
INGRESS = 1
_MAP_FD, _MAP_VALUE = 1, 2
_LOG_BYTES = 1 << 16
#: What the verifier says of a helper that this kernel, or this kind of program, does not have.
_REFUSED = ("invalid func ", "unknown func ", "program of this type cannot use helper ")


class Helper(NamedTuple):
    """A helper by its name and its number in enum bpf_func_id."""

    name: str
    number: int


def _instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, to | source << 4, offset, value)


def set_to(register: int, value: int) -> bytes:
    """Return the instruction that sets a register to a constant."""
    return _instruction(0xB7, register, value=value)


def copy(to: int, source: int) -> bytes:
    """Return the instruction that copies a register."""
    return _instruction(0xBF, to, source)


def add(register: int, value: int) -> bytes:
    """Return the instruction that adds a constant to a register."""
    return _instruction(0x07, register, value=value)


def load_map(register: int, descriptor: int) -> bytes:
    """Return the instruction that loads the address of a map."""
    return _instruction(0x18, register, _MAP_FD, value=descriptor) + _instruction(0)


def load_value(register: int, descriptor: int) -> bytes:
    """Return the instructions that load the first u32 of an array's only element."""
    address = _instruction(0x18, register, _MAP_VALUE, value=descriptor) + _instruction(0)
    return address + _instruction(0x61, register, register)


def store_word(offset: int, value: int) -> bytes:
    """Return the instruction that stores a u32 on the stack, at an offset below its end."""
    return _instruction(0x62, 10, offset=offset, value=value)


def skip_unless(register: int, value: int, count: int) -> bytes:
    """Return the instruction that skips the next `count` ones unless a register has this value."""
    return _instruction(0x55, register, offset=count, value=value)


def call_helper(number: int) -> bytes:
    """Return the instruction that calls a helper."""
    return _instruction(0x85, value=number)


EXIT = _instruction(0x95)


def load(kind: int, code: bytes, attach: int = 0) -> int:
    """Load a program and return its descriptor; the caller closes it. Raises OSError."""
    return _load(kind, code, attach, None)


def _load(kind: int, code: bytes, attach: int, log: ctypes.Array[ctypes.c_char] | None) -> int:
    room = ctypes.create_string_buffer(code, len(code))
    # The kernel lets only GPL-compatible programs call some helpers; this string is what it looks at.
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        kind,
        len(code) // 8,
        ctypes.addressof(room),
        ctypes.addressof(licence),
        1 if log is not None else 0,
        len(log) if log is not None else 0,
        ctypes.addressof(log) if log is not None else 0,
        0,
        0,
        b"merlab_probe",
        0,
        attach,
    )
    return bpf_syscall.call(bpf_syscall.PROG_LOAD, attributes, "load a program")[0]


def create_map(kind: int, value_size: int, entries: int) -> int:
    """Create a map with u32 keys and return its descriptor; the caller closes it. Raises OSError."""
    attributes = struct.pack("=IIIIIII16s", kind, 4, value_size, entries, 0, 0, 0, b"merlab_probe")
    return bpf_syscall.call(bpf_syscall.MAP_CREATE, attributes, "create a map")[0]


def knows_helper(kind: int, attach: int, number: int) -> bool:
    """Report whether a kind of program may call a helper on this kernel.

    A program that calls it without arguments is refused in any case: the reason tells. Raise OSError if not even a
    program without a call can be loaded.
    """
    os.close(load(kind, set_to(0, 1) + EXIT, attach))
    log = ctypes.create_string_buffer(_LOG_BYTES)
    try:
        with contextlib.closing(open(_load(kind, call_helper(number) + set_to(0, 1) + EXIT, attach, log), "rb")):
            return True
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EACCES}:
            raise
    said = log.value.decode(errors="replace")
    return not any(words in said for words in _REFUSED)
