"""A distribution of its own in a virtual machine: its files, its kernel, systemd, cgroup v2 alone, and no network."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.guests import packages
from tests.machines.userland import copy_checkout, of_release, wheelhouse

from merbridge_lab import polling
from merbridge_lab.adapters.virtual_machine import EMULATED, OUT
from merbridge_lab.guest import boot, kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: The version of Python that a release of Debian has.
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
_BROUGHT, _WHEELS = "/brought", "/wheels"
#: How long all phases may take, in seconds: on a busy machine, where every instruction is emulated, most of two hours.
_LIMIT = 3 * 3600.0


def _note(said: str) -> None:
    sys.stderr.write(f"{said}\n")


@dataclass(frozen=True)
class Distribution:
    """A release of Debian, and the release of Debian whose kernel it runs."""

    release: str
    kernel: str

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[dict[str, Any]]:
        packages.install()
        with tempfile.TemporaryDirectory(prefix="merlab-brought-") as made:
            copy_checkout(Path(made, "checkout"))
            wheels = wheelhouse(PYTHONS[self.release], "dev")
            yield {
                "root": of_release(self.release),
                "brought": {_BROUGHT: Path(made, "checkout"), _WHEELS: wheels},
                "init": "/sbin/init",
                "folder": Path("/"),
            }

    def run(self, phases: Sequence[str], hear: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Go through the phases of inside.py, or all; return the accelerator, the kernel, and what each phase said.

        `hear` gets each phase as it ends. Raises LabError.
        """
        kernel = kernels.of_release(self.kernel, _note)
        by = boot.accelerator(kernel)
        heard: list[dict[str, Any]] = []
        rest = ""

        def listen(port: int, text: str) -> None:
            nonlocal rest
            if port != OUT:
                sys.stderr.write(text)
                return
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                heard.append(json.loads(line))
                hear(heard[-1])

        with self._surroundings() as there:
            boot.run(
                kernel,
                ["python3", f"{_BROUGHT}/tests/guests/inside.py", _BROUGHT, _WHEELS, *phases],
                timeout=_LIMIT,
                by=by,
                hear=listen,
                environment={polling.SLOWNESS: "6"} if by == EMULATED else {},
                **there,
            )
        return {"by": by, "kernel": kernel.version, "phases": heard}
