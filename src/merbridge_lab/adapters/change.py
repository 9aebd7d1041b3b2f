"""The one door through which merlab changes the machine.

Whatever makes, alters or removes something that others can see (rules, links, mounts, namespaces, cgroups, BPF pins
and map entries, files, processes) is done inside `change("what")`, as a block or as a decorator. The door does nothing
by itself: it is where one can stand and see every change pass. The tests do: they kill merlab at each
(tests/kernel/change_points.py), and see by strace that no change goes past it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def passing(what: str, *, done: bool) -> None:
    """Take note, in the thread that does it: a change is about to be made, or was tried. Nobody is here to do so."""


@contextlib.contextmanager
def change(what: str) -> Iterator[None]:
    """Make a change of the machine in this block; `what` names it in a few words, the same ones each time."""
    passing(what, done=False)
    try:
        yield
    finally:
        passing(what, done=True)
