"""The single point through which merlab changes the machine.

Code that creates, alters or removes something that others can see (rules, links, mounts, namespaces, cgroups, BPF pins
and map entries, files, processes) runs inside `change("what")`, as a block or as a decorator. This does nothing by
itself; it is a place to observe every change. The tests use it: they kill merlab at each change
(tests/kernel/change_points.py), and check with strace that no change bypasses it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def passing(what: str, *, done: bool) -> None:
    """Do nothing; tests replace this to observe, in the thread that makes it, a change before and after the attempt."""


@contextlib.contextmanager
def change(what: str) -> Iterator[None]:
    """Mark the block as a change of the machine; `what` names it in a few words, the same ones each time."""
    passing(what, done=False)
    try:
        yield
    finally:
        passing(what, done=True)
