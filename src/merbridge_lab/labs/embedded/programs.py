"""Check whether merlab may trust the programs that it runs, and itself: whatever replaces one decides what is read.

Checked are the machine's tools (who owns them, and that nothing is mounted over them), and what root's environment
loaded into merlab itself. If root writes to the machine's own files, or to merlab's, this cannot be told from a
distribution that did so.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import mounts, system_tools
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import envoy
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOOLS = (
    "sh",
    "env",
    "nsenter",
    "setsid",
    "curl",
    "/usr/bin/python3",
    *(f"iptables-{backend}{suffix}" for backend in ("nft", "legacy") for suffix in ("", "-save", "-restore")),
)
#: Variables that make the dynamic linker load a library before all others; ld.so(8).
_PRELOADS = ("LD_PRELOAD", "LD_AUDIT")
_PRELOADED = Path("/etc/ld.so.preload")


def problems() -> list[str]:
    """Describe, one sentence each, what may not be trusted. Raises OSError."""
    return [*_of_tools(), *_of_merlab()]


def _of_tools() -> Iterator[str]:
    covered = {mount.target for mount in mounts.table()}
    for name in _TOOLS:
        if (found := system_tools.find(name)) is None:
            continue  # whoever needs it reports it
        if who := system_tools.changeable(found):
            yield f"{name} is {found}, and {who}: what it prints for root cannot be trusted"
        if (real := Path(found).resolve()) in covered:
            yield f"{real} is covered by a mount: what runs as {name} is not the machine's (umount {real})"


def _of_merlab() -> Iterator[str]:
    words = {text for key in _PRELOADS for text in os.environ.get(key, "").replace(":", " ").split()}
    if _PRELOADED.exists():
        words |= {word for line in lines_of(_PRELOADED.read_text()) for word in line.partition("#")[0].split()}
    names = {Path(word).name for word in words}
    places = [Path(each).resolve() for each in re.split("[:;]", os.environ.get("LD_LIBRARY_PATH", "")) if each]
    for library in sorted(_loaded()):
        if system_tools.is_installed(library):
            continue
        if library.name in names:
            yield f"{library} is loaded into merlab itself (LD_PRELOAD, LD_AUDIT or {_PRELOADED})"
        elif any(each in library.parents for each in places):
            yield f"{library} is loaded into merlab itself (LD_LIBRARY_PATH)"
    foreign = {_absolute(folder): word for word, folder in _told() if not system_tools.is_installed(Path(folder))}
    # All dependencies of merlab may come from the directory that merlab itself comes from (pip install --target).
    foreign = {each: word for each, word in foreign.items() if each not in Path(__file__).absolute().parents}
    if foreign:
        yield from _of_modules(foreign)
    with contextlib.suppress(LabError):  # there is none: the check of the sidecars reports that
        found = envoy.find_envoy().absolute()
        for each in (each for each in foreign if each in found.parents):
            yield f"{found} is what merlab takes for Envoy ({foreign[each]})"


def _told() -> Iterator[tuple[str, str]]:
    """Return the directories that the environment makes Python import from, each with its variable."""
    for folder in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        yield "PYTHONPATH", folder
    if os.environ.get("PYTHONUSERBASE"):
        yield "PYTHONUSERBASE", os.environ["PYTHONUSERBASE"]


def _absolute(folder: str) -> Path:
    return Path(folder).absolute()


def _of_modules(foreign: dict[Path, str]) -> Iterator[str]:
    for name in sorted(sys.modules):
        file = getattr(sys.modules[name], "__file__", None)
        if not file:
            continue
        for each in Path(file).absolute().parents:
            if each in foreign:
                yield f"{file} is loaded into merlab itself ({foreign[each]})"
                break


def _loaded() -> set[Path]:
    found = set()
    for line in lines_of(Path("/proc/self/maps").read_text(errors="replace")):
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5].startswith("/"):  # noqa: PLR2004 - proc_pid_maps(5)
            found.add(Path(fields[5].removesuffix(" (deleted)")))
    return found
