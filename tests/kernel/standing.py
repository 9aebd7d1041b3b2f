"""A complete embedded lab, for a test that reads it in this process."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab.labs.embedded.managed_lab import ManagedEmbeddedLab

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def standing(name: str) -> Iterator[ManagedEmbeddedLab]:
    """Create a lab called `name`, with its dataplane; it is removed after the block."""
    lab = ManagedEmbeddedLab(name=name)
    try:
        for part in (lab.node, lab.mesh, lab.dataplane):
            part.ensure()
        yield lab
    finally:
        for part in (lab.dataplane, lab.mesh, lab.node):
            part.remove()
        lab.remove(10)
