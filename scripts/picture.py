"""Draw the terminal picture in the README: run the real merlab, and keep the end of what it printed as an SVG.

sudo .venv/bin/python scripts/picture.py docs/up.svg        (the lab stays up)

It begins at step 8. Of a long listing the first lines are kept and "⋮" stands for the rest; nothing else is changed.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

# rich keeps its template in a private module; a copy of it here would be longer than what is changed in it.
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

_WIDTH = 100
_FIRST_STEP = "8  "
_OUTPUT = " " * 5
_LISTING = 6
#: The picture brings no font along and fetches none: whoever looks at it uses a monospaced one of their own.
_FONT_FACES = re.compile(r"@font-face \{\{.*?\}\}", re.DOTALL)
_FONTS = 'ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace'


def printed() -> list[Text]:
    """Run `merlab up` with colours at a fixed width, and give its lines from the first step that is shown."""
    merlab = Path(sys.executable).with_name("merlab")
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(_WIDTH), "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    done = subprocess.run(
        [merlab, "up"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    lines = [Text.from_ansi(line) for line in done.stdout.rstrip("\n").splitlines()]
    first = next(at for at, line in enumerate(lines) if line.plain.startswith(_FIRST_STEP))
    return lines[first:]


def shortened(lines: list[Text]) -> list[Text]:
    """Leave out what is beyond the first lines of a listing: what a command printed is indented further than all else.

    The folded second line of a check is as far in, and no listing.
    """
    kept: list[Text] = []
    printed_so_far = 0
    listing = False
    for line in lines:
        if line.plain.lstrip().startswith("$ "):
            listing, printed_so_far = True, 0
        elif not line.plain.startswith(_OUTPUT):
            listing = False
        else:
            printed_so_far += 1
        if not listing or printed_so_far <= _LISTING:
            kept.append(line)
        elif printed_so_far == _LISTING + 1:
            kept.append(Text(f"{_OUTPUT}⋮", style="dim"))
    return kept


def main() -> None:
    """Draw it into the file named on the command line."""
    target = Path(sys.argv[1])
    paper = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True)
    for line in shortened(printed()):
        line.truncate(_WIDTH, overflow="ellipsis")
        paper.print(line)
    template = _FONT_FACES.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code, monospace", _FONTS)
    # Some renderers drop even unbreakable blanks at the beginning of a text.
    template = template.replace('<g class="{unique_id}-matrix">', '<g class="{unique_id}-matrix" xml:space="preserve">')
    title = "merlab up, from step 8 to the verdict"
    target.write_text(paper.export_svg(title=title, code_format=template, unique_id="up") + "\n")


if __name__ == "__main__":
    main()
