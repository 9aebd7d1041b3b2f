"""merlab with a hook at each of its changes of the machine (adapters/change.py): a script, and its caller.

    python change_points.py list FILE -- step 9   notes each change point as it is passed, a line each
    python change_points.py kill SITE N -- step 9 kills itself by SIGKILL just before the Nth change at SITE
    python change_points.py mark -- step 9        says at each change point, before and after, what strace can see

SITE may be a prefix. A change point is identified by what is changed, by the line of merlab that called the adapters,
and by the part of the walkthrough that it belongs to: a flush of sleep and one of its control client are two.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path

import merbridge_lab
from merbridge_lab.adapters import change

_SOURCE = str(Path(merbridge_lab.__file__).parent)
#: A file below this folder, which does not exist, is opened at each change point: strace shows its name.
MARKS = "/merlab-at-the-door"
#: The modules whose lines identify the part of a run.
_WALKTHROUGH = ("/matrix.py", "/cli/lifecycle.py")


def site(what: str) -> str:
    """Return the name of the change point that calls this, from its callers."""
    frame = sys._getframe(1)
    asked = part = fallback = ""
    while frame is not None:
        file, place = frame.f_code.co_filename, f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        is_step = "/steps/s0" in file
        if is_step or file.endswith(_WALKTHROUGH):
            part = part or place
        if file.startswith(_SOURCE) and not file.endswith("/change.py"):
            fallback = fallback or place
            if "/adapters/" not in file and not file.endswith("/polling.py"):
                asked = asked or place
        frame = frame.f_back
    return f"{what} @ {asked or fallback} < {part or '-'}"


def _lister(file: str) -> object:
    def passing(what: str, *, done: bool) -> None:
        if not done:
            with Path(file).open("a") as notes:
                notes.write(f"{site(what)}\n")

    return passing


def _mark(what: str, *, done: bool) -> None:
    os.access(f"{MARKS}/{'after' if done else 'before'}/{what}", os.F_OK)


def _killer(where: str, number: int) -> object:
    passed = itertools.count(1)

    def passing(what: str, *, done: bool) -> None:
        if not done and site(what).startswith(where) and next(passed) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return passing


def main(words: list[str]) -> None:
    mode, *rest = words[: words.index("--")]
    change.passing = {
        "list": lambda: _lister(rest[0]),
        "mark": lambda: _mark,
        "kill": lambda: _killer(rest[0], int(rest[1])),
    }[mode]()
    sys.argv = ["merlab", *words[words.index("--") + 1 :]]
    from merbridge_lab.cli import main as merlab

    merlab()


if __name__ == "__main__":
    main(sys.argv[1:])
