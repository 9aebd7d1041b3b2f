"""Download the wheels of a lock for another Python.

python3 scripts/wheels.py FOLDER 3.13 [dev]

pip judges a lock's conditions by the Python that it runs on, whatever --python-version says: they are judged here. Any
Python with pip does, and nothing is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

LOCKS = Path(__file__).resolve().parents[1] / "requirements"
_CONDITION = re.compile(r"python_full_version (<|>=) '3\.(\d+)'")
_TRUE = "python_version >= '3'"


def lines_for(python: str, lock: str) -> str:
    """Return the lines of a lock that hold for a Python, "3.13", with conditions that hold for any."""
    minor = int(python.removeprefix("3."))
    kept, keeps = [], True
    for line in lock.splitlines():
        if line[:1] not in (" ", "#", ""):
            keeps = all((minor < int(bound)) is (sign == "<") for sign, bound in _CONDITION.findall(line))
        if keeps:
            kept.append(_CONDITION.sub(_TRUE, line))
    return "\n".join(kept) + "\n"


def main(folder: str, python: str, lock: str = "run") -> int:
    """Download them; return pip's exit status."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as asked:
        asked.write(lines_for(python, (LOCKS / f"{lock}.txt").read_text()))
        asked.flush()
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--require-hashes"]
        words = ["--no-deps", "--only-binary", ":all:", "--python-version", python, "-r", asked.name, "-d", folder]
        return subprocess.run([*pip, *words], check=False).returncode


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4 or not re.fullmatch(r"3\.\d+", sys.argv[2]):  # noqa: PLR2004 - the words above
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
