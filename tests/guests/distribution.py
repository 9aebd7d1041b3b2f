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
from tests.machines.userland import (
    BARE,
    PACKAGES,
    PYTHONS,
    UBUNTU,
    UBUNTU_KERNEL,
    copy_checkout,
    install,
    of_release,
    offline,
    wheelhouse,
)

from merbridge_lab import polling
from merbridge_lab.adapters.virtual_machine import EMULATED, OUT
from merbridge_lab.guest import boot, kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Where a guest has the checkout, wheels for more, and a folder of `make offline`.
HOME, _WHEELS, _OFFLINE = "/srv/merlab", "/wheels", "/offline"
#: The phase for which a guest has nothing but such a folder.
FROM_NOTHING = "from nothing"
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
    """A release of Debian or Ubuntu, and the release whose kernel it runs."""

    release: str
    kernel: str

    @contextlib.contextmanager
    def _root(self, lock: str, *, bare: bool) -> Iterator[tuple[Path, dict[str, Path]]]:
        """Yield a tree of this release with this checkout in it, and the folders to bring along, with a lock's wheels.

        It is set up from wheels without a network, in a mount namespace: emulated, that takes a quarter of an hour. A
        `bare` one is not set up, and has nothing of what merlab needs.
        """
        base = of_release(self.release, BARE if bare else PACKAGES)
        for old in base.parent.glob(f"{base.name}.guest-*"):  # of a run that was killed
            if time.time() - old.stat().st_mtime > _OLD:
                shutil.rmtree(old, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=base.parent, prefix=f"{base.name}.guest-") as made:
            layer, hold, tree = (Path(made, name) for name in ("layer", "hold", "tree"))
            if bare:
                brought = {_OFFLINE: offline(self.release)}
                copy_checkout(layer / HOME[1:])
            else:
                brought = {_WHEELS: wheelhouse(PYTHONS[self.release], lock)}
                hold.mkdir()
                install(base, layer, hold, brought[_WHEELS], HOME, dev=lock == "dev")
            # One file in both trees costs nothing; what the layer has replaces it in one of them.
            subprocess.run(["cp", "-al", base, tree], check=True)
            subprocess.run(["cp", "-a", "--remove-destination", f"{layer}/.", tree], check=True)
            yield tree, brought

    def run(self, phases: Sequence[str], hear: Callable[[str, dict[str, Any]], None]) -> int:
        """Go through phases of inside.py in one boot; return 0 if all held, 1 if one did not.

        With FROM_NOTHING among them the machine is bare. `hear` gets the version of the kernel, and each phase as it
        ends. Raises LabError.
        """
        packages.install()
        if self.kernel in UBUNTU:
            kernel = kernels.at_path(of_release(self.kernel, UBUNTU_KERNEL))
        else:
            kernel = kernels.of_release(self.kernel, _note)
        by = boot.accelerator(kernel)
        # Only smoke tests need more than merlab does.
        lock = "dev" if "smoke" in phases else "run"
        bare = FROM_NOTHING in phases
        program = ("sh", "from_nothing.sh") if bare else ("python3", "inside.py")
        with self._root(lock, bare=bare) as (root, brought):
            return boot.run(
                kernel,
                [program[0], f"{HOME}/tests/guests/{program[1]}", *phases],
                timeout=_LIMIT,
                by=by,
                hear=by_line(lambda line: hear(kernel.version, json.loads(line))),
                environment={polling.SLOWNESS: "6"} if by == EMULATED else {},
                root=root,
                brought=brought,
                init="/sbin/init",
                folder=Path("/"),
            ).status
