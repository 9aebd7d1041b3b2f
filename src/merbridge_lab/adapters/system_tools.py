"""Where to find the system's own tools, and which part of the environment they get.

merlab trusts nsenter, curl or iptables-save, so PATH must not decide which of them it runs. The machine's own
directories come first, and PATH is used for what is not there (Nix profiles). Root's environment may contain variables
that make a tool do something else (LD_PRELOAD, XTABLES_LIBDIR, a proxy). The system's own tools get only the variables
on a short list. The user's tools (docker, kind, istioctl), which have settings there, get everything except what loads
other code into a program. If root replaces the machine's own /usr/bin/curl, this cannot be told from a distribution
that did so.
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

#: In search order: the distribution's directories before what an administrator has added.
FOLDERS: tuple[str, ...] = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
#: The tools concerned. Others (docker, kind, istioctl) are the user's choice: PATH decides.
_OURS = re.compile(r"(ip6?|arp|eb)tables(-.*)?|nft|ip|ss|tc|conntrack|sh|env|nsenter|setsid|unshare|setpriv|curl")
#: The variables of merlab's environment that a tool may see.
_KEPT = re.compile(r"HOME|LANG|LANGUAGE|LC_.*|TERM|TMPDIR|TZ|USER|LOGNAME|XTABLES_LOCKFILE")

#: Where libraries are that belong to the system, or to merlab's Python.
INSTALLED = frozenset(
    Path(each)
    for place in ("/usr", "/lib", "/lib64", "/lib32", "/nix/store", "/gnu/store", sys.prefix, sys.base_prefix)
    for each in (place, os.path.realpath(place))
)
_LIBRARY_PATH = "LD_LIBRARY_PATH"
#: Variables that make a program, its interpreter or the C library load code that it does not have by itself; ld.so(8),
#: bash(1).
_LOADS = re.compile(
    r"(LD_|PYTHON|PERL5|RUBY|NODE_|BASH_FUNC_).*|BASH_ENV|ENV|SHELLOPTS|BASHOPTS|GCONV_PATH|GLIBC_TUNABLES|OPENSSL_CONF"
    r"|OPENSSL_(ENGINES|MODULES)|CPATH|C_INCLUDE_PATH"
)


def find(name: str) -> str | None:
    """Return the path of a program; None if there is none."""
    if not _is_ours(name):
        return shutil.which(name)
    return shutil.which(name, path=path())


def path() -> str:
    """Return the PATH with which the system's tools are found, and find each other."""
    return os.pathsep.join([*FOLDERS, *filter(None, os.environ.get("PATH", "").split(os.pathsep))])


def environment(name: str, given: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return the environment of a program that is requested with `given`; None is merlab's own.

    A download with curl uses the user's proxy and authorities; the curl in a pod gets its environment from env.
    """
    asked = os.environ if given is None else given
    if not _is_ours(name) or Path(name).name == "curl":
        return {key: text for key, text in asked.items() if not _LOADS.fullmatch(key)}
    return {**{key: text for key, text in asked.items() if _KEPT.fullmatch(key)}, "PATH": path()}


def of_merlab() -> Mapping[str, str]:
    """Return the environment of another Python of merlab's: that of a tool, and where its libraries are installed.

    Some Pythons (Software Collections) find their own library only through LD_LIBRARY_PATH.
    """
    kept = {
        key: text for key, text in os.environ.items() if _KEPT.fullmatch(key) or key.startswith(("MERLAB_", "BCC_"))
    }
    places = [each for each in os.environ.get(_LIBRARY_PATH, "").split(os.pathsep) if is_installed(Path(each))]
    return {**kept, "PATH": path(), **({_LIBRARY_PATH: os.pathsep.join(places)} if places else {})}


def is_installed(place: Path) -> bool:
    """Report whether a place is where the system, or merlab's Python, has its libraries."""
    if not place.is_absolute():  # nor resolved: the current directory may have been deleted
        return False
    real = Path(os.path.realpath(place))
    return any(real == each or each in real.parents for each in INSTALLED)


def _is_ours(name: str) -> bool:
    return _OURS.fullmatch(name if os.sep not in name else Path(name).name) is not None


def changeable(program: str) -> str:
    """Describe who besides root can replace a program; "" if nobody can. Raises OSError."""
    real = Path(program).resolve()
    return next((sentence for each in (real, *real.parents) for sentence in _open(each)), "")


def _open(place: Path) -> Iterator[str]:
    seen = place.stat()
    if seen.st_uid != 0:
        yield f"{place} belongs to user {seen.st_uid}"
    # In a sticky directory (/tmp, the Nix store) nobody can replace files of root.
    if seen.st_mode & stat.S_IWOTH and not seen.st_mode & stat.S_ISVTX:
        yield f"everybody may write to {place}"
