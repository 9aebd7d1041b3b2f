"""The names, by package manager, of the packages that contain what merlab needs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
#: Ubuntu's releases by the name that derivatives give in UBUNTU_CODENAME; derivatives have their own numbers.
_UBUNTUS = {
    "trusty": (14, 4),
    "xenial": (16, 4),
    "bionic": (18, 4),
    "focal": (20, 4),
    "jammy": (22, 4),
    "lunar": (23, 4),
    "mantic": (23, 10),
    "noble": (24, 4),
    "oracular": (24, 10),
    "plucky": (25, 4),
    "questing": (25, 10),
}
#: The form of Ubuntu's kernel versions, each with a package of tools: x.y.0-ABI-flavour. Kernels of WSL, of the
#: mainline builds, of Debian, of Proxmox and self-built ones have no such package.
_UBUNTUS_KERNEL = re.compile(
    r"\d+\.\d+\.0-[1-9]\d{0,3}-(?:generic|lowlatency|realtime|virtual|aws|azure|gcp|gke|gkeop|ibm|intel|iotg|kvm|nvidia"
    r"|oem|oracle|raspi|laptop|starfive|allwinner|bluefield|xilinx)(?:-[a-z0-9]+)*"
)
#: RHEL and its derivatives, and the release from which on they have no package iptables-legacy, or only in EPEL.
_RHELS = ("rhel", "centos", "ol")
_NO_LEGACY = (9,)


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
    """Parse os-release(5): shell assignments, quoted or not."""
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
    """A distribution, as far as it matters for names of packages; `manager` is None if it is unknown."""

    name: str
    manager: str | None
    version: tuple[int, ...] = ()
    is_ubuntu: bool = False
    is_rhel: bool = False

    @classmethod
    def read(cls, root: Path = Path("/")) -> Distribution:
        """Read os-release; if it names nothing known, the package manager that is present decides."""
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
        ubuntu = _ubuntu(values, like, version)
        return cls(
            values.get("PRETTY_NAME", "this distribution"),
            manager,
            ubuntu or version,
            is_ubuntu=bool(ubuntu),
            is_rhel=any(word in _RHELS for word in like),
        )

    def install(self, *needs: str) -> str:
        """Return the one command that installs these needs of the table."""
        if self.manager is None:
            debian = [package for need in needs for package in table()[need]["apt"]]
            return f"install what Debian calls {' '.join(debian)}"
        packages: dict[str, None] = {}
        for need in needs:
            packages |= dict.fromkeys(self._packages(need, self.manager))
        return f"{_INSTALL[self.manager]} {' '.join(packages)}"

    def _packages(self, need: str, manager: str) -> tuple[str, ...]:
        if need == "bpftool" and self.is_ubuntu and self.version <= _BPFTOOL_WITH_KERNEL:
            release = os.uname().release
            own = _UBUNTUS_KERNEL.fullmatch(release)
            return ("linux-tools-common", f"linux-tools-{release}" if own else "linux-tools-generic")
        packages = table()[need][manager]
        if self.is_rhel and self.version >= _NO_LEGACY:
            return tuple(package for package in packages if package != "iptables-legacy")
        return packages


def _ubuntu(values: Mapping[str, str], like: Sequence[str], version: tuple[int, ...]) -> tuple[int, ...]:
    """Return the release of Ubuntu that this is or is derived from; "" if it is none, or is unknown."""
    if "ubuntu" not in like:
        return ()
    named = _UBUNTUS.get(values.get("UBUNTU_CODENAME", "").lower())
    if values.get("ID") == "ubuntu":
        return version or named or ()
    # Its own number may look like Ubuntu's (Pop!_OS), or be another (Linux Mint 21).
    return named or (version if re.fullmatch(r"\d\d\.(?:04|10)", values.get("VERSION_ID", "")) else ())
