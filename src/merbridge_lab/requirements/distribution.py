"""What the distribution's package manager calls what merlab needs."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from merbridge_lab.text import lines_of

_TABLE = Path(__file__).parents[1] / "data" / "packages.txt"

#: By ID or ID_LIKE of os-release(5).
_FAMILIES = {
    "debian": "apt",
    "ubuntu": "apt",
    "fedora": "dnf",
    "rhel": "dnf",
    "centos": "dnf",
    "suse": "zypper",
    "opensuse": "zypper",
    "sles": "zypper",
    "arch": "pacman",
}

_INSTALL = {
    "apt": "apt-get install",
    "dnf": "dnf install",
    "zypper": "zypper install",
    "pacman": "pacman -S",
}
_MANAGERS = {"apt-get": "apt", "dnf": "dnf", "zypper": "zypper", "pacman": "pacman"}

#: The last Ubuntu whose bpftool is among the tools of each kernel.
_BPFTOOL_WITH_KERNEL = (24, 4)


@lru_cache(maxsize=1)
def table() -> dict[str, dict[str, tuple[str, ...]]]:
    """Read the table of packages: need → package manager → packages."""
    lines = [line.split() for line in lines_of(_TABLE.read_text(encoding="utf-8")) if line.strip()]
    return {
        need: {
            manager: () if cell == "-" else tuple(cell.split("+"))
            for manager, cell in zip(_INSTALL, cells, strict=True)
        }
        for need, *cells in lines
        if not need.startswith("#")
    }


def os_release(text: str) -> dict[str, str]:
    """Read os-release(5): shell assignments, quoted or not."""
    values = {}
    for line in lines_of(text):
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            try:
                values[key] = "".join(shlex.split(value))
            except ValueError:
                values[key] = value
    return values


@dataclass(frozen=True)
class Distribution:
    """A distribution, as far as it matters for names of packages; `manager` is None where it is not known."""

    name: str
    manager: str | None
    version: tuple[int, ...] = ()
    is_ubuntu: bool = False

    @classmethod
    def read(cls, root: Path = Path("/")) -> Distribution:
        """Read os-release; where it says nothing known, the package manager that is there decides."""
        values: dict[str, str] = {}
        for place in ("etc/os-release", "usr/lib/os-release"):
            try:
                values = os_release((root / place).read_text(encoding="utf-8", errors="replace"))
                break
            except OSError:
                continue
        own = values.get("ID", "")
        like = [own, *own.split("-")[:1], *values.get("ID_LIKE", "").split()]
        manager = next((_FAMILIES[word] for word in like if word in _FAMILIES), None)
        if manager is None:
            manager = next((name for tool, name in _MANAGERS.items() if shutil.which(tool)), None)
        version = tuple(int(part) for part in values.get("VERSION_ID", "").split(".") if part.isdigit())
        return cls(values.get("PRETTY_NAME", "this distribution"), manager, version, is_ubuntu=own == "ubuntu")

    def install(self, *needs: str) -> str:
        """Give the one command that installs these needs of the table."""
        if self.manager is None:
            debian = [package for need in needs for package in table()[need]["apt"]]
            return f"install what Debian calls {' '.join(debian)}"
        packages: dict[str, None] = {}
        for need in needs:
            packages |= dict.fromkeys(self._packages(need, self.manager))
        return f"{_INSTALL[self.manager]} {' '.join(packages)}"

    def _packages(self, need: str, manager: str) -> tuple[str, ...]:
        if need == "bpftool" and self.is_ubuntu and self.version <= _BPFTOOL_WITH_KERNEL:
            return ("linux-tools-common", f"linux-tools-{os.uname().release}")
        return table()[need][manager]
