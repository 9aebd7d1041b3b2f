"""Up, one command of merlab, and down, inside one guest: what runs there, as which merlab, and how long it may take."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab import polling
from merbridge_lab.adapters import system_tools
from merbridge_lab.adapters.virtual_machine import EMULATED
from merbridge_lab.guest import boot, initramfs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from merbridge_lab.guest.kernels import Kernel

#: How many times longer everything may take where each instruction is emulated, beside other work.
_SLOWNESS_EMULATED = 6
#: When a guest is given up, in seconds: emulated, beside other work, `up` and `verify` took ten minutes.
_GIVEN_UP = {True: 3600.0, False: 900.0}
#: A shell is left by who uses it, and bench takes as long as its options say.
_FOR_EVER = 30 * 86400.0
#: Variables that are about this machine's labs, not about the guest's.
_NOT_PASSED_ON = frozenset({"MERLAB_LAB"})


@dataclass(frozen=True)
class Walkthrough:
    """A command of merlab for a guest, with its arguments as they are typed there; a shell may follow it."""

    command: str
    arguments: Sequence[str]
    as_json: bool = False
    opens_shell: bool = False

    @property
    def needs_lab(self) -> bool:
        """Whether a lab is brought up for it; doctor looks at the machine alone."""
        return self.command != "doctor"

    def script(self) -> str:
        """Return what the guest runs, for sh."""
        return initramfs.script(
            "walkthrough",
            merlab=shlex.join(_merlab()),
            command=self.command,
            arguments=shlex.join(["--lab", "embedded", *self.arguments]),
            up=shlex.join(["--lab", "embedded"]),
            lab=self.needs_lab,
            json="--json --events" if "--events" in self.arguments else "--json" if self.as_json else "",
            then=shlex.join([_shell(), "-i"]) if self.opens_shell else "",
        ).decode()

    def run(
        self, kernel: Kernel, by: str, hear: Callable[[int, str], None], terminal: tuple[int, int] | None = None
    ) -> int:
        """Run it under a kernel, and return the command's exit status. Raises LabError."""
        return boot.run(
            kernel,
            ["/bin/sh", "-c", self.script()],
            timeout=_FOR_EVER if self.opens_shell or self.command == "bench" else _GIVEN_UP[by == EMULATED],
            by=by,
            environment=_environment(by),
            hear=hear,
            terminal=terminal,
        ).status


def expected(command: str, by: str) -> str:
    """Return how long a command takes in a guest, in words."""
    if command == "doctor":
        return "1 to 2 minutes" if by == EMULATED else "a few seconds"
    if command == "bench":  # never emulated
        return "less than a minute more than the measurement itself"
    return "5 to 20 minutes" if by == EMULATED else "less than a minute"


def _merlab() -> list[str]:
    """Return how the merlab that runs here is called by its path."""
    called = Path(sys.argv[0])
    if called.name == "merlab" and called.exists():
        return [str(called.absolute())]
    return [sys.executable, "-m", "merbridge_lab.cli"]


def _environment(by: str) -> Mapping[str, str]:
    """Return what merlab's own variables are here, where its programs are, and how slow the guest is."""
    passed_on = {
        name: value
        for name, value in os.environ.items()
        if name in ("NO_COLOR", "COLUMNS") or (name.startswith("MERLAB_") and name not in _NOT_PASSED_ON)
    }
    places = [*dict.fromkeys([str(Path(_merlab()[0]).parent), system_tools.path()])]
    slowness = {polling.SLOWNESS: str(_SLOWNESS_EMULATED)} if by == EMULATED else {}
    return {**passed_on, **slowness, "PATH": os.pathsep.join(places)}


def _shell() -> str:
    asked = os.environ.get("SHELL", "")
    return asked if asked and Path(asked).exists() else "/bin/sh"
