"""Fill docs/tutorial.md with the output of a real run: `make tutorial`.

sudo .venv/bin/python scripts/tutorial.py docs/tutorial.md

The text is the document's own. Below each comment `<!-- output: COMMAND | PART -->` is a block for what the command
prints. A command that is named several times in a row with a part runs once. The parts are "step N", "verdict" (the
last paragraph) and "matrix" (the table and all below it). Of a step, the first commands and the first lines of each
output are kept, and "⋮" stands for the rest. The lab comes and goes: one that is up is not touched.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[1]
_WIDTH = 100
#: What is in a block that was never filled.
UNFILLED = "(make tutorial fills this in)"
_BLOCK = re.compile(
    r"^<!-- output: (?P<command>merlab [^|\n]+?)(?: \| (?P<part>[\w ]+))? -->\n```text\n.*?^```$",
    re.MULTILINE | re.DOTALL,
)
_STEP = re.compile(r"^(?=\d  \S)", re.MULTILINE)
_COMMAND, _OUTPUT, _NOTICE = "   $ ", "     ", "     │ "
#: Commands in a row, and lines of one output, that are kept of a step.
_MOST_COMMANDS, _MOST_OUTPUT = 7, 12
_MATRIX = "   eBPF  rules: client"


class FillError(Exception):
    """A command ended otherwise than it should, or did not print the part that is asked for."""


def filled(text: str, run: Callable[[list[str]], str]) -> str:
    """Return the document with what each command prints; `run` runs the words of one, and returns its output."""
    last: tuple[str, str] = ("", "")

    def block(found: re.Match[str]) -> str:
        nonlocal last
        command, part = found["command"], found["part"]
        if part is None or command != last[0]:
            last = (command, run(shlex.split(command)))
        marker = found[0].partition("\n")[0]
        shown = "\n".join(line.rstrip() for line in part_of(last[1], part).strip("\n").splitlines())
        shown = shortened(shown) if part and part.startswith("step") else shown
        typed = "" if part and part.startswith("step") else f"$ {command}\n"  # what is typed for all steps is said once
        return f"{marker}\n```text\n{typed}{shown}\n```"

    return _BLOCK.sub(block, text)


def shortened(step: str) -> str:
    """Return what a step printed, without the end of long listings and of many commands in a row."""
    kept: list[str] = []
    for kind, group in itertools.groupby(_kinds(step), key=lambda pair: pair[0]):
        lines = [line for _, line in group]
        starts = [at for at, line in enumerate(lines) if line.startswith(_COMMAND)]
        if kind == "command" and len(starts) > _MOST_COMMANDS:
            lines[starts[_MOST_COMMANDS] :] = [f"   ⋮ {len(starts) - _MOST_COMMANDS} more commands"]
        if kind == "output" and len(lines) > _MOST_OUTPUT:
            lines[_MOST_OUTPUT:] = [f"{_OUTPUT}⋮ {len(lines) - _MOST_OUTPUT} more lines"]
        kept += lines
    return "\n".join(kept)


def _kinds(step: str) -> Iterator[tuple[str, str]]:
    """Yield each line with what it belongs to: a command, its output, or the text around them."""
    kind = "text"
    for line in step.splitlines():
        if line.startswith(_COMMAND):
            kind = "command"
        elif line.startswith(_NOTICE) or kind == "text":
            kind = "text"
        elif line.startswith(_OUTPUT) or (kind == "output" and not line):
            kind = "output"
        elif line.startswith("   "):
            kind = "text"
        yield kind, line


def part_of(output: str, part: str | None) -> str:
    """Return one part of what a command printed; raise FillError where it has none."""
    if part is None:
        return output
    if part == "verdict":
        return output.rstrip().rpartition("\n\n")[2]
    if part == "matrix":
        _, found, after = output.partition(_MATRIX)
        if found:
            return f"{found}{after}"
    elif part.startswith("step "):
        for each in _STEP.split(output.rpartition("\n\n")[0]):
            if each.startswith(f"{part.removeprefix('step ')}  "):
                return each
    raise FillError(f"no {part} in:\n{output}")


def merlab(words: list[str]) -> str:
    """Run merlab of this environment as a person types it, at a fixed width, and return what it printed."""
    folder = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MERLAB_", "SUDO_"))}
    environment |= {"PATH": f"{folder}:{environment['PATH']}", "COLUMNS": str(_WIDTH), "NO_COLOR": "1"}
    done = subprocess.run(
        [folder / words[0], *words[1:]], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode != 0:
        raise FillError(f"{shlex.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.replace(str(ROOT), "/path/to/merlab")


def main() -> None:
    """Fill the file named on the command line."""
    target = Path(sys.argv[1])
    try:
        if '"up": true' in merlab(["merlab", "status", "--json"]):
            sys.exit("a lab is up: merlab down, then this again")
        try:
            text = filled(target.read_text(encoding="utf-8"), merlab)
        finally:
            merlab(["merlab", "down"])
    except FillError as error:
        sys.exit(str(error))
    target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
