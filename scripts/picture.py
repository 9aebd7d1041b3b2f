"""Draw the terminal picture in the README: run the real merlab, and keep its last lines as an SVG.

sudo .venv/bin/python scripts/picture.py docs/up.svg        (the lab stays up)
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

_WIDTH = 100
_LINES = 62


def main() -> None:
    """Run `merlab up` with colours at a fixed width and draw the end of what it printed."""
    target = Path(sys.argv[1])
    merlab = Path(sys.executable).with_name("merlab")
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(_WIDTH), "TERM": "xterm-256color"}
    printed = subprocess.run(
        [merlab, "up"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    ).stdout
    lines = printed.rstrip("\n").splitlines()[-_LINES:]
    paper = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True)
    for line in lines:
        text = Text.from_ansi(line)
        text.truncate(_WIDTH, overflow="ellipsis")
        paper.print(text)
    paper.save_svg(str(target), title="merlab up (its end)")


if __name__ == "__main__":
    main()
