"""The file of compiled programs, written as a person writes it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from walkthrough_host import merlab

if TYPE_CHECKING:
    from pathlib import Path


def compile_into(folder: Path) -> Path:
    """Compile the programs; return the file."""
    file = folder / "programs.json"
    done = merlab("compile", "-o", str(file), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["file"] == str(file)
    return file
