"""Draw the picture in the README, from a recording of the real merlab that is kept beside it.

sudo .venv/bin/python scripts/picture.py docs/demo.cast docs/up.svg        (the lab stays up)

It records `merlab step 8..9 --demo --auto 1` on a terminal of 80 columns and 24 rows. The picture is one frame of it:
the rules are flushed, and the request was answered. The recording shows what merlab wrote, screen by screen; it keeps
of each screen only the rows that changed.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyte

# rich keeps its template in a private module; a copy of it here would be longer than what is changed in it.
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
_WIDTH, _HEIGHT = 80, 24
#: The frame that is drawn: no rule is left, and what waits next is the control experiment.
_FLUSHED, _NEXT = "rules: 0 ", "--without-ebpf"
_WAITS = "⏎"
_ENTERS, _LEAVES = "\x1b[?1049h", "\x1b[?1049l"
_DIM = "dim"
_COLORS = {"brown": "yellow"}
_SGR = {"black": 30, "red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36, "white": 37}
#: The picture brings no font along and fetches none: whoever looks at it uses a monospaced one of their own.
_FONT_FACES = re.compile(r"@font-face \{\{.*?\}\}", re.DOTALL)
_FONTS = 'ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace'

Event = tuple[float, str, str]


class Screen(pyte.Screen):
    """A terminal that also knows faint text, as a colour of its own."""

    def select_graphic_rendition(self, *attrs: int, **options: bool) -> None:
        """Set the look of what is written next."""
        super().select_graphic_rendition(*attrs, **options)
        if 2 in attrs:  # noqa: PLR2004 - faint
            self.cursor.attrs = self.cursor.attrs._replace(fg=_DIM)

    def row(self, number: int) -> list[tuple[str, str, bool]]:
        """Return a row as pieces of one look each: text, colour, and whether it is bold."""
        pieces: list[tuple[str, str, bool]] = []
        for column in range(self.columns):
            cell = self.buffer[number][column]
            look = (_COLORS.get(cell.fg, cell.fg), cell.bold)
            if pieces and pieces[-1][1:] == look:
                pieces[-1] = (pieces[-1][0] + cell.data, *look)
            else:
                pieces.append((cell.data, *look))
        return pieces


def recorded() -> tuple[dict[str, Any], list[Event]]:
    """Run the demo on a terminal of its own, and return the head and the events of its recording."""
    merlab = Path(sys.executable).with_name("merlab")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MERLAB_", "SUDO_"))}
    environment |= {"PATH": f"{merlab.parent}:{environment['PATH']}", "TERM": "xterm-256color", "LANG": "C.UTF-8"}
    environment.pop("NO_COLOR", None)
    subprocess.run([merlab, "up", "-q", "--lab", "embedded"], env=environment, check=True)
    with tempfile.TemporaryDirectory() as folder:
        cast = Path(folder) / "demo.cast"
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _HEIGHT, _WIDTH, 0, 0))
        argv = [str(merlab), "step", "8..9", "--demo", "--auto", "1", "--record", str(cast)]
        with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as running:
            os.close(theirs)
            _drain(ours)
        if running.returncode:
            sys.exit(f"merlab ended with {running.returncode}")
        text = cast.read_text(encoding="utf-8").replace(str(ROOT), "/path/to/merlab")
    head, *events = map(json.loads, text.splitlines())
    return head, [tuple(each) for each in events]


def _drain(terminal: int) -> None:
    """Read what is written to a terminal, until nobody has it open."""
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(terminal)


def replayed(events: list[Event]) -> Iterator[tuple[Event, Screen]]:
    """Yield each event, with the screen after it."""
    screen = Screen(_WIDTH, _HEIGHT)
    stream = pyte.Stream(screen)
    for event in events:
        if event[1] == "o":
            stream.feed(event[2])
        yield event, screen


def compact(events: list[Event]) -> list[Event]:
    """Return events that show the same; those of the demo's own screen write only the rows that changed."""
    kept: list[Event] = []
    before: list[list[tuple[str, str, bool]]] = []
    whole = True
    for (time, kind, text), screen in replayed(events):
        after = [screen.row(number) for number in range(_HEIGHT)]
        if kind != "o" or _ENTERS in text or _LEAVES in text or whole:
            kept.append((time, kind, text))
            whole = _ENTERS not in text if kind == "o" and whole else _LEAVES in text
        elif changed := "".join(
            f"\x1b[{number}H{_written(row)}" for number, row in enumerate(after, 1) if row != before[number - 1]
        ):
            kept.append((time, kind, changed))
        before = after
    return kept


def _written(row: list[tuple[str, str, bool]]) -> str:
    text = ""
    pieces = list(row)
    if pieces[-1][1:] == ("default", False):
        pieces[-1] = (pieces[-1][0].rstrip(), "default", False)
    for piece, color, bold in pieces:
        codes = [*(["1"] if bold else []), *(["2"] if color == _DIM else [str(_SGR[color])] if color in _SGR else [])]
        text += f"\x1b[{';'.join(codes)}m{piece}\x1b[m" if codes else piece
    return f"{text}\x1b[K"


def frame(events: list[Event]) -> list[Text]:
    """Return the lines of the frame that is drawn."""
    for _, screen in replayed(events):
        shown = screen.display
        before, waits, _ = "\n".join(line.rstrip() for line in shown).rpartition(_WAITS)
        if _FLUSHED in shown[0] and waits and _NEXT in "".join(before.splitlines()[-2:]):
            rows = [_styled(screen.row(number)) for number in range(_HEIGHT)]
            return rows[: max(number for number, line in enumerate(shown, 1) if line.strip())]
    sys.exit("the recording has no frame in which the rules are flushed and the request is answered")


def _styled(row: list[tuple[str, str, bool]]) -> Text:
    line = Text()
    for piece, color, bold in row:
        line.append(piece, Style(color=color if color in _SGR else None, bold=bold, dim=color == _DIM))
    line.rstrip()
    return line


def drawn(lines: list[Text]) -> str:
    """Return the picture of a terminal with these lines, as SVG."""
    paper = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True)
    for line in lines:
        paper.print(line)
    template = _FONT_FACES.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code, monospace", _FONTS)
    # Some renderers drop even unbreakable blanks at the beginning of a text.
    template = template.replace('<g class="{unique_id}-matrix">', '<g class="{unique_id}-matrix" xml:space="preserve">')
    return paper.export_svg(title="merlab step 9 --demo", code_format=template, unique_id="up") + "\n"


def main() -> None:
    """Write the recording and the picture into the files named on the command line."""
    cast, target = map(Path, sys.argv[1:])
    head, events = recorded()
    short = compact(events)
    target.write_text(drawn(frame(short)), encoding="utf-8")
    cast.write_text("".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in (head, *short)), encoding="utf-8")


if __name__ == "__main__":
    main()
