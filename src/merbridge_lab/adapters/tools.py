"""Where the system's own tools are found, and what of the environment they are given.

merlab believes nsenter, curl or iptables-save, so it does not leave to PATH which of them it runs: the machine's own
directories come first, and PATH is asked for what is not there (Nix profiles). What root's environment may hold that
makes a tool do something else (LD_PRELOAD, XTABLES_LIBDIR, a proxy) is not handed on to it.
A root who replaces the machine's own /usr/bin/curl cannot be told from a distribution that did so.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: In the order in which they are searched: the distribution's before what an administrator has added.
FOLDERS: tuple[str, ...] = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
#: The tools meant. Others (docker, kind, istioctl) are the user's choice: PATH says which.
_OURS = re.compile(r"(ip6?|arp|eb)tables(-.*)?|nft|ip|ss|tc|conntrack|sh|env|nsenter|setsid|unshare|setpriv|curl")
#: What a tool may know of merlab's environment.
_KEPT = re.compile(r"HOME|LANG|LANGUAGE|LC_.*|TERM|TMPDIR|TZ|USER|LOGNAME|XTABLES_LOCKFILE")


def find(name: str) -> str | None:
    """Give the path of a program; None where there is none."""
    if not _is_ours(name):
        return shutil.which(name)
    return shutil.which(name, path=path())


def path() -> str:
    """Give the PATH by which the system's tools are found, and find each other."""
    return os.pathsep.join([*FOLDERS, *filter(None, os.environ.get("PATH", "").split(os.pathsep))])


def environment(name: str, given: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Give the environment of a program that is asked for `given`; None is merlab's own.

    A download by curl goes by the user's proxy and authorities; the curl in a pod is given an environment by env.
    """
    if not _is_ours(name) or Path(name).name == "curl":
        return given
    kept = {key: text for key, text in (os.environ if given is None else given).items() if _KEPT.fullmatch(key)}
    return {**kept, "PATH": path()}


def _is_ours(name: str) -> bool:
    return _OURS.fullmatch(name if os.sep not in name else Path(name).name) is not None


def changeable(program: str) -> str:
    """Say who besides root can put something else in the place of a program; empty if nobody can. Raises OSError."""
    real = Path(program).resolve()
    return next((sentence for each in (real, *real.parents) for sentence in _open(each)), "")


def _open(place: Path) -> Iterator[str]:
    seen = place.stat()
    if seen.st_uid != 0:
        yield f"{place} belongs to user {seen.st_uid}"
    # In a sticky directory (/tmp, the Nix store) nobody can replace what is root's.
    if seen.st_mode & stat.S_IWOTH and not seen.st_mode & stat.S_ISVTX:
        yield f"everybody may write to {place}"
