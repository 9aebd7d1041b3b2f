"""The embedded lab: one Linux machine, root, nothing else."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from merbridge_lab.drivers.embedded import layout
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from merbridge_lab.drivers.embedded.lab import EmbeddedLab
    from merbridge_lab.requirements import Requirement


class EmbeddedDriver:
    """Opens the embedded lab."""

    name = "embedded"

    def is_up(self) -> bool:
        """Whether anything of the lab is there: its run directory is where it begins and ends."""
        return layout.RUN.exists()

    def require_able(self) -> None:
        """Raise LabError when this process may not work with the lab."""
        if os.geteuid() != 0:
            raise LabError(
                "the embedded lab makes namespaces and loads programs into the kernel: that takes root",
                hint="sudo merlab …, or: make up",
            )

    def requirements(self) -> list[Requirement]:
        """Probe what this machine offers and lacks."""
        from merbridge_lab import requirements

        return requirements.embedded()

    @contextlib.contextmanager
    def open(self, *, keep: bool = False) -> Iterator[EmbeddedLab]:
        """Give the lab for the length of the block."""
        from merbridge_lab.drivers.embedded.lab import EmbeddedLab

        yield EmbeddedLab(keep=keep)
