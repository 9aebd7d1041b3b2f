"""Compare output with a file in golden/; MERLAB_GOLDEN=write rewrites the files, for a person to read the diff."""

from __future__ import annotations

import os
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


def timeless(text: str) -> str:
    """Return `text` with all durations made equal, and without blanks at the ends of lines."""
    text = re.sub(r"in \d+\.\d s", "in 0.0 s", text)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def check(name: str, text: str) -> None:
    """Compare `text` with the golden file `name`."""
    path = FOLDER / name
    if os.environ.get("MERLAB_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"if this is as meant: MERLAB_GOLDEN=write pytest, and look at git diff {path}"
