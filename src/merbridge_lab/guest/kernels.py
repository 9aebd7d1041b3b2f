"""Kernels to boot: installed ones, those unpacked in the user's cache, and those of the distribution's packages.

A kernel is named by its version, the beginning of one ("6.12"), "newest" (of those at hand), a release of Debian
("trixie"), or a path.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.errors import LabError, UsageError
from merbridge_lab.guest import debian

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEWEST = "newest"
_IMAGES = ("boot/vmlinuz-{}", "lib/modules/{}/vmlinuz", "usr/lib/modules/{}/vmlinuz")


@dataclass(frozen=True)
class Kernel:
    """A kernel on disk: its version as `uname -r` prints it, its image, and the directory of its modules."""

    version: str
    image: Path
    modules: Path


def cache() -> Path:
    """Return the directory for unpacked kernels, in the user's cache (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "merlab" / "kernels"


def installed() -> list[Kernel]:
    """Return the kernels that are installed on this machine with their modules."""
    return list(_in(Path("/")))


def unpacked() -> list[Kernel]:
    """Return the kernels in the user's cache."""
    return [kernel for ready in sorted(cache().glob(f"*/{debian.READY}")) for kernel in _in(ready.parent / "root")]


def at_hand() -> list[Kernel]:
    """Return all kernels that need no download, the newest first; each version once."""
    found = {kernel.version: kernel for kernel in [*unpacked(), *installed()]}
    return sorted(found.values(), key=lambda kernel: debian.order(kernel.version), reverse=True)


def find(asked: str, tell: Callable[[str], None]) -> Kernel:
    """Return the kernel that `asked` names; download it if it is not at hand, after `tell` has said so.

    Raise UsageError for a name of no kernel, LabError if it cannot be downloaded.
    """
    if not asked.strip():
        raise _no_kernel("no kernel is named")
    if os.sep in asked:
        try:
            return at_path(Path(asked).absolute())
        except OSError as error:  # a folder that this user may not read, or a current directory that was deleted
            raise _no_kernel(f"the kernel {asked} cannot be read: {error.strerror}") from error
    if asked in debian.RELEASES:
        return of_release(asked, tell)
    for kernel in at_hand():
        if asked == NEWEST or debian.matches(asked, kernel.version):
            return kernel
    if asked == NEWEST:
        raise LabError("there is no kernel at hand", hint="merlab kernels", id="kernel.unknown")
    for version in filter(functools.partial(debian.matches, asked), debian.offered()):
        return _download(version, functools.partial(debian.download, version), tell)
    if (release := debian.release_of(asked)) is not None:
        return of_release(release, tell)
    raise UsageError(
        f"there is no kernel {asked!r}, neither installed nor among this distribution's packages",
        hint="merlab kernels",
        id="kernel.unknown",
    )


def of_release(release: str, tell: Callable[[str], None]) -> Kernel:
    """Return the newest kernel of a release of Debian, downloaded on the first call. Raises LabError."""
    return _download(release, functools.partial(debian.download_of_release, release), tell)


def at_path(path: Path) -> Kernel:
    """Return the kernel of a path: a directory with boot/ and lib/modules/, or an image that is called vmlinuz-VERSION.

    Raise UsageError if there is none, or not its modules.
    """
    if path.is_dir():
        for kernel in _in(path):
            return kernel
        raise _no_kernel(f"{path} has no kernel with its modules: boot/vmlinuz-VERSION and lib/modules/VERSION")
    if not path.is_file():
        raise _no_kernel(f"there is no kernel at {path}")
    version = path.name.removeprefix("vmlinuz-")
    for root in (path.parent.parent, Path("/")):
        for kernel in _in(root):
            if kernel.version == version:
                return Kernel(version, path, kernel.modules)
    raise _no_kernel(f"the kernel {path} needs its modules beside it, in {path.parent.parent}/lib/modules/{version}")


def _no_kernel(what: str) -> UsageError:
    return UsageError(what, hint="merlab kernels", id="kernel.unknown")


def _in(root: Path) -> Iterator[Kernel]:
    """Yield the kernels of a root directory that have modules and an index of them, the newest first."""
    found = {
        modules.name: modules
        for lib in (root / "lib/modules", root / "usr/lib/modules")
        for modules in (lib.iterdir() if lib.is_dir() else ())
        if (modules / "modules.dep").exists() or (modules / "kernel").is_dir()
    }
    for version in sorted(found, key=debian.order, reverse=True):
        images = (root / name.format(version) for name in _IMAGES)
        if image := next((each for each in images if each.exists()), None):
            yield Kernel(version, image, found[version])


def _download(name: str, download: Callable[[Path], None], tell: Callable[[str], None]) -> Kernel:
    """Return the kernel of a folder of the cache, which `download` fills on the first call."""
    folder = cache() / re.sub(r"[^\w.+~-]", "_", name)
    if not (folder / debian.READY).exists():
        tell(f"the kernel of {name} is downloaded by apt and unpacked in {folder}; nothing is installed")
        with debian.unpacking(folder) as root:
            download(root)
    return at_path(folder / "root")
