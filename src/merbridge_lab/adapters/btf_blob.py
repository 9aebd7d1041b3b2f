"""Write the smallest BTF that names what a map holds and what a program is called.

The kernel creates socket storage only for a value with a type, and it remembers which objects were loaded with the same
types. See include/uapi/linux/btf.h for the format.
"""

from __future__ import annotations

import struct

_MAGIC, _VERSION, _HEADER_BYTES = 0xEB9F, 1, 24
_INT, _ARRAY, _STRUCT, _FUNC, _FUNC_PROTO = 1, 3, 4, 12, 13
_BITS = 8
#: Integers by their size in bytes.
_INTEGERS = {1: "u8", 4: "u32", 8: "u64"}


class Blob:
    """Types, each with a number; the first is 1."""

    def __init__(self) -> None:
        self._types: list[bytes] = []
        self._strings = b"\0"
        self._integers = {size: self._add(name, _INT, size, size * _BITS) for size, name in _INTEGERS.items()}
        self._sized = {size: self._integers[size] for size in (4, 8)}
        self._returns_int = self._add("", _FUNC_PROTO, self._integers[4])

    def _add(self, name: str, kind: int, size_or_type: int, *rest: int, members: int = 0) -> int:
        offset = 0
        if name:
            offset = len(self._strings)
            self._strings += name.encode() + b"\0"
        self._types.append(struct.pack(f"={3 + len(rest)}I", offset, kind << 24 | members, size_or_type, *rest))
        return len(self._types)

    def sized(self, size: int) -> int:
        """Return the number of a type of `size` bytes: an integer if there is one, else an array of bytes."""
        if size not in self._sized:
            self._sized[size] = self._add("", _ARRAY, 0, self._integers[1], self._integers[4], size)
        return self._sized[size]

    def structure(self, size: int) -> int:
        """Return the number of a structure of `size` bytes: the kernel wants one as the key of an LPM trie."""
        return self._add("", _STRUCT, size, 0, self.sized(size), 0, members=1)

    def function(self, name: str) -> int:
        """Return the number of a function with this name."""
        return self._add(name, _FUNC, self._returns_int)

    def bytes(self) -> bytes:
        """Return the types as the kernel loads them."""
        types = b"".join(self._types)
        lengths = (0, len(types), len(types), len(self._strings))
        return struct.pack("=HBBIIIII", _MAGIC, _VERSION, 0, _HEADER_BYTES, *lengths) + types + self._strings
