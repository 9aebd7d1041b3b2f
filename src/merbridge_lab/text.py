r"""Text from others: read without failing on it, and shown without obeying it.

A mount point, a process name, a log line or the body of an answer may hold any byte. merlab splits what it reads into
lines where the writer did, at \n, and nowhere else: `str.splitlines` also splits at \x1c, \x85, U+2028 and more, which
are ordinary characters to the kernel. What merlab shows goes through `printable`, so that no text from a pod moves the
cursor, fills the clipboard or changes the reading direction of root's terminal.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Controls (Cc, with ESC and the C1 controls), invisible formats (Cf, with those that change the direction), halves of
# surrogate pairs (bytes that were not UTF-8), and the two separators where terminals break lines.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_KEPT = "\n\t"
_ASCII = re.compile(r"[\n\t\x20-\x7e]*")
# Where Python keeps a byte that was not UTF-8 (PEP 383).
_ESCAPED_BYTES = range(0xDC80, 0xDD00)


def _seen(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _UNSEEN:
        return character
    code = ord(character)
    if code in _ESCAPED_BYTES:
        code -= 0xDC00
    if code <= 0xFF:  # noqa: PLR2004 - the last one byte
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004 - the last of four digits


def printable(text: str) -> str:
    r"""Return `text` with \xNN for everything that a terminal would obey instead of showing; keep newlines and tabs."""
    return text if _ASCII.fullmatch(text) else "".join(map(_seen, text))


def as_json(value: object, *, indent: int | None = None) -> str:
    """Return `value` as JSON in printable ASCII alone."""
    return json.dumps(value, indent=indent, ensure_ascii=True, default=str).replace("\x7f", "\\u007f")


def lines_of(text: str) -> list[str]:
    r"""Split `text` at \n only. The last line needs no newline; a \r before a newline is dropped with it."""
    cut = text.replace("\r\n", "\n").split("\n")
    return cut if cut[-1] else cut[:-1]


def read_text(path: Path) -> str:
    """Read a file of the kernel or of a pod. Bytes that are not UTF-8 are kept (PEP 383). Raise OSError."""
    return os.fsdecode(path.read_bytes())
