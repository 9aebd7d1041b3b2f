"""The content of bpf/abi.h for Python: constants, counters and the layouts of map keys and values.

The header is the only place that defines them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
from pathlib import Path
from typing import Any

import merbridge_lab

#: The C sources, in the checkout and in the wheel.
BPF = Path(merbridge_lab.__file__).parent / "bpf"

_TYPES: dict[str, Any] = {"u32": ctypes.c_uint32, "u64": ctypes.c_uint64, "char": ctypes.c_char}


class Layout:
    """One C structure: bytes to a dictionary and back, with the machine's own alignment."""

    def __init__(self, name: str, members: list[tuple[str, Any]]) -> None:
        self.name = name
        self._type: Any = type(name, (ctypes.Structure,), {"_fields_": members})

    @property
    def size(self) -> int:
        """Length in bytes."""
        return ctypes.sizeof(self._type)

    @property
    def type(self) -> Any:  # noqa: ANN401  (a class made at run time)
        """The ctypes class."""
        return self._type

    def offset(self, member: str) -> int:
        """Return the offset of a member, in bytes."""
        return int(getattr(self._type, member).offset)

    def pack(self, **values: Any) -> bytes:  # noqa: ANN401
        """Return the bytes of a structure; members not named are zero."""
        made = self._type()
        for name, value in values.items():
            setattr(made, name, value)
        return bytes(made)

    def unpack(self, raw: bytes) -> dict[str, Any]:
        """Return the members by name; arrays as lists, nested structures as dictionaries."""
        return _plain(self._type.from_buffer_copy(raw))


def _plain(made: Any) -> dict[str, Any]:  # noqa: ANN401
    values: dict[str, Any] = {}
    for name, *_ in made._fields_:
        value = getattr(made, name)
        if isinstance(value, ctypes.Structure):
            value = _plain(value)
        elif isinstance(value, ctypes.Array):
            value = list(value)
        values[name] = value
    return values


def _text() -> str:
    return re.sub(r"//.*", "", (BPF / "abi.h").read_text())


@functools.cache
def constants() -> dict[str, int]:
    """Return every #define of a number and every enumerator."""
    text = _text()
    found = {name: int(value) for name, value in re.findall(r"#define (\w+) +(\d+)", text)}
    for body in re.findall(r"enum \w+ \{(.*?)\}", text, re.DOTALL):
        found |= {name: number for number, name in enumerate(re.findall(r"\w+", body))}
    return found


@functools.cache
def counter_names() -> tuple[str, ...]:
    """Return the counters in the order of their numbers, as users see them: outbound_connects and so on."""
    prefix = "COUNTER_"
    ours = [(number, name) for name, number in constants().items() if name.startswith(prefix)]
    return tuple(name.removeprefix(prefix).lower() for _, name in sorted(ours))


@functools.cache
def legs() -> tuple[str, ...]:
    """Return the legs of a request by number: none, outbound, mesh, inbound."""
    ours = [(number, name) for name, number in constants().items() if name.startswith("LEG_")]
    return tuple(name.removeprefix("LEG_").lower() for _, name in sorted(ours))


@functools.cache
def event_kinds() -> tuple[str, ...]:
    """Return the kinds of events of the trace by number: connect, wanted and so on."""
    ours = [(number, name) for name, number in constants().items() if name.startswith("EVENT_")]
    return tuple(name.removeprefix("EVENT_").lower() for _, name in sorted(ours))


@functools.cache
def layouts() -> dict[str, Layout]:
    """Return every structure by its C name."""
    found: dict[str, Layout] = {}
    for name, body in re.findall(r"struct (\w+) \{(.*?)\};", _text(), re.DOTALL):
        members: list[tuple[str, Any]] = []
        for kind, struct, member, length in re.findall(r"(\w+)(?: (\w+))? (\w+)(?:\[(\d+)\])?;", body):
            base = found[struct].type if kind == "struct" else _TYPES[kind]
            members.append((member, base * int(length) if length else base))
        found[name] = Layout(name, members)
    return found


@functools.cache
def source() -> str:
    """Return the whole dataplane as one text: BCC has no include path that works for a rewritten file."""
    seen: set[str] = set()

    def read(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        text = (BPF / name).read_text()
        return re.sub(r'^#include "([\w.]+)"$', lambda found: read(found[1]), text, flags=re.MULTILINE)

    return read("merlab.c")


@functools.cache
def stamp() -> str:
    """Identify exactly this dataplane: the version of merlab and a digest of its C sources."""
    digest = hashlib.sha256(source().encode()).hexdigest()[:12]
    return f"{merbridge_lab.__version__}+{digest}"
