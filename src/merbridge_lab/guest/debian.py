"""Kernels of Debian's and Ubuntu's packages, downloaded by apt and unpacked, not installed.

The packages that apt knows here are downloaded as they are. For a release of Debian that it does not know, apt is used
with lists and sources of its own, so that neither the machine's package lists nor its packages change.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.command import run
from merbridge_lab.adapters.virtual_machine import INSTALL
from merbridge_lab.errors import LabError
from merbridge_lab.polling import progress
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The releases whose kernels can be named, with the series that each is known for; backports move on.
RELEASES = {"bookworm": "6.1", "trixie": "6.12", "trixie-backports": ""}
#: The package that stands for the newest kernel of a release.
_NEWEST = "linux-image-amd64"
#: A package with a kernel: Debian's, or Ubuntu's; not the small ones of clouds, nor those for real time.
_PACKAGE = re.compile(r"linux-image-(\d+\.\d+\.[\w.+~-]*?(?<!-rt)(?<!-cloud)-(?:amd64|generic))")
#: What the folder of an unpacked kernel has once it is complete.
READY = "ready"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
#: How long apt may take for its lists, and for a package of 100 MB, in seconds.
_LISTS, _PACKAGES = 300.0, 900.0
#: How the folder of a download begins while it runs, and the age (seconds) at which none runs any more.
_PART, _OLD = ".part-", 86400.0
#: As an ordinary user or as root, apt reads as whom it runs.
_APT = ("apt-get", "-q", "-oAPT::Sandbox::User=root")


def order(version: str) -> tuple[int, ...]:
    """Return what versions are sorted by: the numbers in one."""
    return tuple(map(int, re.findall(r"\d+", version)))


def matches(asked: str, version: str) -> bool:
    """Report whether a version is the one asked for, or begins with it: "6.1" is no beginning of "6.12"."""
    return re.match(rf"{re.escape(asked)}(?![0-9])", version) is not None


def offered() -> list[str]:
    """Return the versions of kernels that apt knows here, the newest first; none where there is no apt."""
    try:
        told = run(["apt-cache", "--names-only", "search", "^linux-image-[0-9].*-(amd64|generic)$"], timeout=60).stdout
    except LabError:
        return []
    found = {name[1] for line in lines_of(told) if (name := _PACKAGE.fullmatch(line.split(" ")[0]))}
    return sorted(found, key=order, reverse=True)


def newest_of_series(versions: Sequence[str]) -> list[str]:
    """Return of each series ("6.12") the newest version, the newest first."""
    newest: dict[tuple[int, ...], str] = {}
    for version in sorted(versions, key=order):
        newest[order(version)[:2]] = version
    return [version for _, version in sorted(newest.items(), reverse=True)]


def command(version: str) -> str:
    """Return the command that downloads the package of a kernel by hand."""
    return f"apt-get download linux-image-{version}"


@functools.cache
def mirrors() -> frozenset[tuple[str, bool]]:
    """Return the addresses of Debian's archives that apt uses here, and of each whether it is the security one."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)", "Created-By: Packages"]
    try:
        told = run(asked, timeout=60).stdout
    except LabError:
        return frozenset()
    found = (line.split() for line in lines_of(told))
    return frozenset((uri, label == "Debian-Security") for uri, origin, label, *_ in found if origin == "Debian")


def release_of(series: str) -> str | None:
    """Return the release of Debian that is known for a series ("6.12"); None if there is none, or no mirror to ask."""
    return next((name for name, known in RELEASES.items() if known == series), None) if mirrors() else None


def download(version: str, folder: Path) -> None:
    """Download the kernel of a version that apt knows, and unpack it in `folder`/root. Raises LabError."""
    _download(_APT, f"linux-image-{version}", folder)


@change("a kernel in the cache")
def download_of_release(release: str, folder: Path) -> None:
    """Download the newest kernel of a release of Debian, and unpack it in `folder`/root. Raises LabError."""
    apt = _own_apt(release, folder / "apt")
    with progress(f"the package lists of {release}"):
        run([*apt, "update"], timeout=_LISTS)
    image = next((name for name in _depends(apt, _NEWEST) if name.startswith("linux-image-")), None)
    if image is None:
        raise LabError(f"{_NEWEST} of {release} names no kernel", hint="merlab kernels", id="kernel.unknown")
    _download(apt, image, folder)
    shutil.rmtree(folder / "apt")


@contextlib.contextmanager
def unpacking(folder: Path) -> Iterator[Path]:
    """Yield a directory for the block to fill, and call it `folder` at the end; after an error nothing is left."""
    with change("the cache of kernels"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for old in folder.parent.glob(f"{_PART}*"):  # of a download that was killed
            with contextlib.suppress(FileNotFoundError):  # it has just ended, or somebody else removes it
                if time.time() - old.stat().st_mtime > _OLD:
                    shutil.rmtree(old, ignore_errors=True)
    with change("a kernel in the cache"), tempfile.TemporaryDirectory(dir=folder.parent, prefix=_PART) as made:
        part = Path(made, folder.name)
        part.mkdir()
        yield part
        (part / READY).touch()
        with contextlib.suppress(OSError):  # somebody else was as quick
            part.rename(folder)


@change("a kernel in the cache")
def _download(apt: Sequence[str], image: str, folder: Path) -> None:
    # Newer kernels are in several packages, all of one version.
    version = image.removeprefix("linux-image-")
    parts = [name for name in _depends(apt, image) if name.endswith(f"-{version}") and name != image]
    with progress(f"the packages of {image}"):
        # Not by env: that would get merlab's own environment, and apt needs the user's proxy.
        run([*apt, "download", image, *parts], folder=folder, timeout=_PACKAGES)
        root = folder / "root"
        for archive in folder.glob("*.deb"):
            run(["dpkg-deb", "--extract", str(archive), str(root)], timeout=_LISTS)
            archive.unlink()
        _index(root, version)


def _index(root: Path, version: str) -> None:
    """Index the modules, which the package would do when it is installed."""
    # depmod wants lib/modules, merged or not.
    base = root if (root / "lib/modules").is_dir() else root / "usr"
    try:
        run(["depmod", "--basedir", str(base), version], timeout=_LISTS)
    except LabError as error:
        if error.id == "tool.missing":
            raise LabError(error.what, hint=INSTALL, id=error.id) from error
        raise


def _depends(apt: Sequence[str], package: str) -> list[str]:
    """Return the names of the packages that a package depends on."""
    told = run(["apt-cache", *apt[1:], "depends", package], timeout=60).stdout
    return [line.split()[1] for line in lines_of(told) if line.strip().startswith("Depends: ")]


@change("a kernel in the cache")
def _own_apt(release: str, state: Path) -> list[str]:
    """Return apt-get with lists and sources of its own, for a release from the mirrors that this machine uses."""
    for each in ("lists/partial", "cache/archives/partial"):
        (state / each).mkdir(parents=True, exist_ok=True)
    suites = {False: release, True: f"{release}-security"}
    lines = [
        f"deb [signed-by={_KEYRING}] {uri} {suites[is_security]} main"
        for uri, is_security in sorted(mirrors())
        if not (is_security and release.endswith("-backports"))
    ]
    if not lines:
        raise LabError(
            f"this machine's package sources are not Debian's: there is no kernel of {release}",
            hint="merlab kernels",
            id="kernel.unknown",
        )
    (state / "sources.list").write_text("\n".join(lines) + "\n")
    options = {
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": state / "lists",
        "Dir::Cache": state / "cache",
    }
    return [*_APT, *(f"-o{name}={value}" for name, value in options.items())]
