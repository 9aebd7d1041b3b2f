"""A distribution of its own in a virtual machine: its files, its kernel, systemd, cgroup v2 alone, and no network."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.guests import packages
from tests.machines.userland import install, of_release, wheelhouse

from merbridge_lab import polling
from merbridge_lab.adapters.virtual_machine import EMULATED, OUT
from merbridge_lab.guest import boot, kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: The version of Python that a release of Debian has.
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
#: Where a guest has the checkout, and wheels for more.
HOME, _WHEELS = "/srv/merlab", "/wheels"
#: How long all phases may take, in seconds: on a busy machine, where every instruction is emulated, more than an hour.
_LIMIT = 3 * 3600.0
#: The age at which a tree belongs to no run any more, in seconds.
_OLD = 86400.0


def _note(said: str) -> None:
    sys.stderr.write(f"{said}\n")


def by_line(hear: Callable[[str], None]) -> Callable[[int, str], None]:
    """Return what hears a guest: each line of its stdout goes to `hear`, all else to stderr."""
    rest = ""

    def listen(port: int, text: str) -> None:
        nonlocal rest
        if port != OUT:
            sys.stderr.write(text)
            return
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            hear(line)

    return listen


@dataclass(frozen=True)
class Distribution:
    """A release of Debian, and the release of Debian whose kernel it runs."""

    release: str
    kernel: str

    @contextlib.contextmanager
    def _root(self, wheels: Path) -> Iterator[Path]:
        """Yield a tree of this release with this checkout in it, set up from wheels without a network.

        It is made in a mount namespace: emulated, pip alone would take a quarter of an hour.
        """
        base = of_release(self.release)
        for old in base.parent.glob(f"{base.name}.guest-*"):  # of a run that was killed
            if time.time() - old.stat().st_mtime > _OLD:
                shutil.rmtree(old, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=base.parent, prefix=f"{base.name}.guest-") as made:
            layer, hold, tree = (Path(made, name) for name in ("layer", "hold", "tree"))
            hold.mkdir()
            install(base, layer, hold, wheels, HOME)
            # One file in both trees costs nothing; what the layer has replaces it in one of them.
            subprocess.run(["cp", "-al", base, tree], check=True)
            subprocess.run(["cp", "-a", "--remove-destination", f"{layer}/.", tree], check=True)
            yield tree

    def run(self, phases: Sequence[str], hear: Callable[[str, dict[str, Any]], None]) -> int:
        """Go through the phases of inside.py, or all; return 0 if all held, 1 if one did not.

        `hear` gets the version of the kernel, and each phase as it ends. Raises LabError.
        """
        packages.install()
        kernel = kernels.of_release(self.kernel, _note)
        by = boot.accelerator(kernel)
        # Only smoke tests need more than merlab does.
        lock = "dev" if not phases or "smoke" in phases else "run"
        wheels = wheelhouse(PYTHONS[self.release], lock)
        with self._root(wheels) as root:
            return boot.run(
                kernel,
                ["python3", f"{HOME}/tests/guests/inside.py", *phases],
                timeout=_LIMIT,
                by=by,
                hear=by_line(lambda line: hear(kernel.version, json.loads(line))),
                environment={polling.SLOWNESS: "6"} if by == EMULATED else {},
                root=root,
                brought={_WHEELS: wheels},
                init="/sbin/init",
                folder=Path("/"),
            ).status
