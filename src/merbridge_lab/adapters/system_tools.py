"""Where the system's own tools are found, and what of the environment they are given.

merlab believes nsenter, curl or iptables-save, so it does not leave to PATH which of them it runs: the machine's own
directories come first, and PATH is asked for what is not there (Nix profiles). What root's environment may hold that
makes a tool do something else (LD_PRELOAD, XTABLES_LIBDIR, a proxy) is not handed on to it: the system's own tools get
what is on a short list, and the user's (docker, kind, istioctl), which have settings of their own there, all but what
loads other code into a program.
A root who replaces the machine's own /usr/bin/curl cannot be told from a distribution that did so.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
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

#: Where libraries are that came with the system, or with merlab's Python.
INSTALLED = frozenset(
    Path(each)
    for place in ("/usr", "/lib", "/lib64", "/lib32", "/nix/store", "/gnu/store", sys.prefix, sys.base_prefix)
    for each in (place, os.path.realpath(place))
)
_LIBRARY_PATH = "LD_LIBRARY_PATH"
#: What has a program, its interpreter or the C library load code that it does not have by itself; ld.so(8), bash(1).
_LOADS = re.compile(
    r"(LD_|PYTHON|PERL5|RUBY|NODE_|BASH_FUNC_).*|BASH_ENV|ENV|SHELLOPTS|BASHOPTS|GCONV_PATH|GLIBC_TUNABLES|OPENSSL_CONF"
    r"|OPENSSL_(ENGINES|MODULES)|CPATH|C_INCLUDE_PATH"
)


def find(name: str) -> str | None:
    """Return the path of a program; None where there is none."""
    if not _is_ours(name):
        return shutil.which(name)
    return shutil.which(name, path=path())


def path() -> str:
    """Return the PATH with which the system's tools are found, and find each other."""
    return os.pathsep.join([*FOLDERS, *filter(None, os.environ.get("PATH", "").split(os.pathsep))])


def environment(name: str, given: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return the environment of a program that is asked for `given`; None is merlab's own.

    A download by curl goes by the user's proxy and authorities; the curl in a pod is given an environment by env.
    """
    asked = os.environ if given is None else given
    if not _is_ours(name) or Path(name).name == "curl":
        return {key: text for key, text in asked.items() if not _LOADS.fullmatch(key)}
    return {**{key: text for key, text in asked.items() if _KEPT.fullmatch(key)}, "PATH": path()}


def of_merlab() -> Mapping[str, str]:
    """Return the environment of another Python of merlab's: that of a tool, and where its libraries are installed.

    Some Pythons (Software Collections) find their own library by LD_LIBRARY_PATH alone.
    """
    kept = {
        key: text for key, text in os.environ.items() if _KEPT.fullmatch(key) or key.startswith(("MERLAB_", "BCC_"))
    }
    places = [each for each in os.environ.get(_LIBRARY_PATH, "").split(os.pathsep) if is_installed(Path(each))]
    return {**kept, "PATH": path(), **({_LIBRARY_PATH: os.pathsep.join(places)} if places else {})}


def is_installed(place: Path) -> bool:
    """Whether a place is where the system, or merlab's Python, has its libraries."""
    real = Path(os.path.realpath(place))
    return place.is_absolute() and any(real == each or each in real.parents for each in INSTALLED)


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
