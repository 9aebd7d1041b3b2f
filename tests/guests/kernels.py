"""Kernels to boot: the newest of a Debian release, unpacked and not installed, from this machine's own package sources.

apt is used with folders of its own, so that neither the machine's package lists nor its packages change.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

#: What apt installs for the guests: the machine, the first program in it, and what finds the modules that it needs.
PACKAGES = ("qemu-system-x86", "busybox-static", "kmod")
#: The package that stands for the newest kernel of a release.
NEWEST = "linux-image-amd64"
#: The releases whose kernels are booted, with the version that each is known for; backports move on.
RELEASES = {"bookworm": "6.1.", "trixie": "6.12.", "trixie-backports": ""}

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class NoGuestError(Exception):
    """A guest cannot be had here; the text is one sentence that says why."""


@dataclass(frozen=True)
class Kernel:
    """A kernel on disk: its release as `uname -r` gives it, its image, and the folder of its modules."""

    version: str
    image: Path
    modules: Path


def cache() -> Path:
    """Return the folder for unpacked kernels: MERLAB_GUESTS_CACHE, or one in the user's cache."""
    named = os.environ.get("MERLAB_GUESTS_CACHE")
    folder = (
        Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "merlab-guests"
    )
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def install() -> None:
    """Install what is missing of PACKAGES. Raise NoGuestError if apt cannot."""
    found = ("qemu-system-x86_64", "busybox", "depmod")
    if all(shutil.which(each) for each in found) and _is_static(Path(str(shutil.which("busybox")))):
        return
    command = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-q", "-y", "--no-install-recommends", *PACKAGES]
    _run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})


def of_release(release: str, *, newest: bool = False) -> Kernel:
    """Return the kernel of a Debian release, downloaded on the first call, or again with `newest`."""
    folder = cache() / release
    if newest or not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _download(release, folder)
        (folder / "ready").touch()
    return in_folder(folder / "root")


def in_folder(root: Path) -> Kernel:
    """Return the kernel of an unpacked package (boot/ and lib/ or usr/lib/)."""
    for lib in (root / "usr/lib/modules", root / "lib/modules"):
        for modules in sorted(lib.glob("*")):
            for image in (root / "boot" / f"vmlinuz-{modules.name}", modules / "vmlinuz"):
                if image.exists():
                    return Kernel(modules.name, image, modules)
    raise NoGuestError(f"{root} holds no kernel with its modules")


def _download(release: str, folder: Path) -> None:
    """Download the newest kernel of a release into `folder`, and index its modules."""
    apt = _apt(release, folder)
    _run([*apt, "update"])
    image = next((name for name in _depends(apt, NEWEST) if name.startswith("linux-image-")), None)
    if image is None:
        raise NoGuestError(f"{NEWEST} of {release} names no kernel")
    # Newer kernels are in several packages, all of one version.
    version = image.removeprefix("linux-image-")
    parts = [name for name in _depends(apt, image) if name.endswith(f"-{version}")]
    _run([*apt, "download", image, *parts], cwd=folder)
    root = folder / "root"
    for archive in folder.glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(archive), str(root)])
        archive.unlink()
    shutil.rmtree(folder / "apt")
    kernel = in_folder(root)
    # depmod wants lib/modules, merged or not.
    _run(["depmod", "--basedir", str(kernel.modules.parent.parent.parent), kernel.version])


def _depends(apt: list[str], package: str) -> list[str]:
    """Return the names of the packages that a package depends on."""
    told = _run(["apt-cache", *apt[1:], "depends", package])
    return [line.split()[1] for line in told.splitlines() if line.strip().startswith("Depends: ")]


def _apt(release: str, folder: Path) -> list[str]:
    """Return apt-get with lists and sources of its own, for a release from the mirrors that this machine uses."""
    state = folder / "apt"
    for each in ("lists/partial", "cache/archives/partial"):
        (state / each).mkdir(parents=True, exist_ok=True)
    suites = {False: release, True: f"{release}-security"}
    lines = [
        f"deb [signed-by={_KEYRING}] {uri} {suites[is_security]} main"
        for uri, is_security in sorted(_mirrors())
        if not (is_security and release.endswith("-backports"))
    ]
    if not lines:
        raise NoGuestError("this machine's package sources are not Debian's: no kernel of Debian can be had")
    (state / "sources.list").write_text("\n".join(lines) + "\n")
    options = {
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": state / "lists",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",
    }
    return ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]


def _mirrors() -> set[tuple[str, bool]]:
    """Return the addresses of Debian's archives that apt uses here, and of each whether it is the security one."""
    told = _run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)", "Created-By: Packages"])
    found = (line.split() for line in told.splitlines())
    return {(uri, label == "Debian-Security") for uri, origin, label in found if origin == "Debian"}


def _is_static(program: Path) -> bool:
    """Report whether an ELF file asks for no dynamic linker."""
    return b"/ld-linux" not in program.read_bytes()


def _run(command: list[str], **options: object) -> str:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    except FileNotFoundError:
        raise NoGuestError(f"there is no {command[0]} here: kernels come from Debian's packages") from None
    except subprocess.CalledProcessError as error:
        sys.stderr.write(error.stdout + error.stderr)
        raise NoGuestError(f"{command[0]} failed with exit status {error.returncode}") from error
    return str(done.stdout)
