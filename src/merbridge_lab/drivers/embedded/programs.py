"""May merlab believe the programs that it runs, and itself? Who stands in for one of them decides what is read.

Looked at are the machine's tools (whose they are, and that nothing is mounted over them), and what root's environment
had loaded into merlab itself. A root who writes to the machine's own files, or to merlab's, cannot be told from a
distribution that did so.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import mounts, tools
from merbridge_lab.drivers.embedded import sidecar
from merbridge_lab.errors import LabError
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
#: What has the dynamic linker put a library before all others; ld.so(8).
_PRELOADS = ("LD_PRELOAD", "LD_AUDIT")
_PRELOADED = Path("/etc/ld.so.preload")
#: Where libraries are that came with the system, or with merlab's Python.
_LIBRARIES = tuple(
    map(Path, ("/usr", "/lib", "/lib64", "/lib32", "/nix/store", "/gnu/store", sys.prefix, sys.base_prefix))
)
#: Where the system's own are, and by what names BCC and what it needs go there. What the system has not got is the
#: user's choice: whoever built BCC says where it is.
_SYSTEMS = tuple(
    Path("/usr") / each for each in ("lib", "lib64", f"lib/{sysconfig.get_config_var('MULTIARCH') or '.'}")
)
_COMPILERS = ("libbcc", "libbpf", "libelf", "libclang", "libLLVM", "libc.so")
_CUSTOM = ("sitecustomize", "usercustomize")


def problems() -> list[str]:
    """Say, a sentence each, what may not be believed. Raises OSError."""
    return [*_of_tools(), *_of_merlab(), *_of_compiler()]


def _of_tools() -> Iterator[str]:
    covered = {mount.target for mount in mounts.table()}
    for name in _TOOLS:
        if (found := tools.find(name)) is None:
            continue  # whoever needs it says so
        if who := tools.changeable(found):
            yield f"{name} is {found}, and {who}: what it tells root cannot be believed"
        if (real := Path(found).resolve()) in covered:
            yield f"{real} is covered by a mount: what runs as {name} is not the machine's (umount {real})"


def _of_merlab() -> Iterator[str]:
    words = {text for key in _PRELOADS for text in os.environ.get(key, "").replace(":", " ").split()}
    if _PRELOADED.exists():
        words |= {word for line in lines_of(_PRELOADED.read_text()) for word in line.partition("#")[0].split()}
    names = {Path(word).name for word in words}
    for library in sorted(_loaded()):
        if library.name in names and not any(each in library.parents for each in _LIBRARIES):
            yield f"{library} is loaded into merlab itself (LD_PRELOAD, LD_AUDIT or {_PRELOADED})"
    given = [Path(each).absolute() for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    # Where merlab itself comes from, all that it needs may come from (pip install --target).
    foreign = [each for each in given if each not in Path(__file__).absolute().parents]
    for name in _CUSTOM:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and any(each in Path(file).absolute().parents for each in foreign):
            yield f"{file} is loaded into merlab itself (PYTHONPATH)"
    with contextlib.suppress(LabError):  # there is none: that is told of the sidecars
        envoy = sidecar.find_envoy().absolute()
        if any(each in envoy.parents for each in foreign):
            yield f"{envoy} is what merlab takes for Envoy (PYTHONPATH)"


def _of_compiler() -> Iterator[str]:
    """Find what stands in for the system's BCC, or for what that needs: it says what merlab's programs must be."""
    given = os.environ.get("LD_LIBRARY_PATH", "")
    folders = [Path(each or ".").absolute() for each in given.replace(";", ":").split(":")] if given else []
    for folder in folders:
        if any(each == folder or each in folder.parents for each in _LIBRARIES):
            continue
        for library in sorted(folder.glob("lib*.so*")):
            own = next((each / library.name for each in _SYSTEMS if (each / library.name).exists()), None)
            if own is not None and library.name.startswith(_COMPILERS):
                yield f"{library} stands in for {own} (LD_LIBRARY_PATH): unset LD_LIBRARY_PATH"


def _loaded() -> set[Path]:
    found = set()
    for line in lines_of(Path("/proc/self/maps").read_text(errors="replace")):
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5].startswith("/"):  # noqa: PLR2004 - proc_pid_maps(5)
            found.add(Path(fields[5].removesuffix(" (deleted)")))
    return found
