"""The driver of the embedded lab: whether it is up, what it needs, and how it is opened."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.errors import LabError, UsageError
from merbridge_lab.labs.embedded import topology

if TYPE_CHECKING:
    from collections.abc import Iterator

    from merbridge_lab.labs.embedded.managed_lab import ManagedEmbeddedLab
    from merbridge_lab.requirements import Requirement


class EmbeddedDriver:
    """Opens the embedded lab.

    `MERLAB_NAME` in the environment gives it another name, so that tests can have their own lab beside a user's.
    """

    name = "embedded"
    context = ""
    docker = ""

    def __init__(self) -> None:
        self.lab_name = os.environ.get("MERLAB_NAME") or topology.NAME
        if not topology.LAB_NAME.fullmatch(self.lab_name):
            raise UsageError(
                f"MERLAB_NAME={self.lab_name!r} is no name for a lab: merlab, or merlab- and 1 to 16 of a-z, 0-9",
                hint="unset MERLAB_NAME",
            )

    def is_up(self) -> bool:
        """Report whether anything of the lab exists: its run directory is created first and removed last."""
        return topology.RUN.with_name(self.lab_name).exists()

    @staticmethod
    def names() -> list[str]:
        """List the embedded labs that exist, whatever their name."""
        return topology.lab_names()

    def require_able(self) -> None:
        """Raise LabError if this process may not work with the lab."""
        from merbridge_lab.requirements import privileges

        if os.geteuid() != 0:
            raise LabError(
                "the embedded lab makes namespaces and loads programs into the kernel: this requires root",
                hint=privileges.as_root(shlex.join(["merlab", *sys.argv[1:]])),
                id="root.needed",
            )
        found = privileges.assess(Path("/"))
        if found.verdict == "fail":
            raise LabError(
                f"the embedded lab needs {found.needed}; found {found.found}",
                hint=found.hint,
                id="requirement.missing",
            )

    def requirements(self) -> list[Requirement]:
        """Probe what this machine offers and lacks."""
        from merbridge_lab import requirements

        return requirements.embedded(sockets=True)

    @contextlib.contextmanager
    def open(
        self, *, keep: bool = False, backend: str | None = None, legs: str | None = None, pods: int | None = None
    ) -> Iterator[ManagedEmbeddedLab]:
        """Yield the lab for the duration of the block; its rules are in `backend` (default: nft).

        `legs` is the profile of what eBPF moves (default: that of the lab that is up, else all legs). `pods` is how
        many it has (default: as many as it was made with, else the walkthrough's three). Raise LabError if the lab is
        up with its rules in another backend.
        """
        from merbridge_lab.dataplane import Profile
        from merbridge_lab.labs.embedded.managed_lab import ManagedEmbeddedLab

        present = ManagedEmbeddedLab(name=self.lab_name).present_backend() if os.geteuid() == 0 else None
        if backend and present and backend != present:
            raise LabError(
                f"the lab is up, with its rules in {present} tables, not {backend}",
                hint="merlab down",
                id="rules.other_backend",
            )
        yield ManagedEmbeddedLab(
            name=self.lab_name,
            keep=keep,
            backend=present or backend or "nft",
            profile=Profile(legs) if legs else None,
            pods=pods,
        )
