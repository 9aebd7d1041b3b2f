"""Another distribution's files as the root of a mount namespace: its Python, BCC, tools and C library, this kernel.

mmdebstrap makes a tree of files once, in the user's cache; it is only read afterwards. A command sees an overlay of it:
what it writes is in a layer that its caller keeps, or in memory and gone with it. Nothing of this machine changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHECKOUT = Path(__file__).parents[2]
#: What merlab needs there, as scripts/setup would install it, what an ordinary user of it has, and what a virtual
#: machine of it needs to boot, but for a kernel.
PACKAGES = (
    "python3", "python3-venv", "python3-bpfcc", "iptables", "nftables", "curl", "iproute2", "procps", "bpftool",
    "sudo", "make", "ca-certificates", "kmod", "systemd-sysv", "udev", "dbus",
)  # fmt: skip
#: Releases of Ubuntu; mmdebstrap knows their mirror. Debian has the key of their archive as a package.
UBUNTU = ("jammy", "noble", "resolute")
_KEYS = "ubuntu-archive-keyring"
#: The version of Python that a release has.
PYTHONS = {"bookworm": "3.11", "trixie": "3.13", "jammy": "3.10", "noble": "3.12", "resolute": "3.14"}
#: What Ubuntu has only with each kernel, up to 24.04; merlab does without.
_LACKING = {"jammy": ("bpftool",), "noble": ("bpftool",)}
#: A kernel without firmware, with the modules of a virtual machine.
UBUNTU_KERNEL = ("linux-image-virtual",)
#: A machine that has nothing of what merlab needs: as above, what a virtual machine of it needs to boot.
BARE = ("kmod", "systemd-sysv", "udev", "dbus")
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
# A plain chroot will not do: mount namespaces within it need a root that is a mount.
_ENTER = """set -e
lower=$1 upper=$2 hold=$3
shift 3
ip link set lo up
mount -t tmpfs -o mode=755 none "$hold"
[ -n "$upper" ] || { upper=$hold/upper; mkdir "$upper"; }
work=${upper%/*}/work
mkdir -p "$work" "$hold/root"
mount -t overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$work" none "$hold/root"
cd "$hold/root"
mkdir -p wheels
for each in proc sys dev; do mount --rbind "/$each" "$each"; done
for each in run tmp; do mount -t tmpfs -o mode=1777 none "$each"; done
chmod 755 run
[ -z "$WHEELS" ] || { mount --bind "$WHEELS" wheels; mount -o remount,bind,ro wheels; }
mkdir -p .old
pivot_root . .old
umount -l .old
rmdir .old
cd /
unset OLDPWD WHEELS
exec "$@"
"""


@dataclass(frozen=True)
class Userland:
    """A tree of files, and the layers above it, the topmost first."""

    base: Path
    layers: tuple[Path, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def prefix(self, hold: Path, *, keep: Path | None = None) -> list[str]:
        """Return the argv that a command follows, to run in it.

        `hold` is an empty folder, which is covered for the command alone. What the command writes is kept in the folder
        `keep`, or lost with it.
        """
        lower = ":".join(map(str, (*self.layers, self.base)))
        return [
            *("unshare", "--mount", "--net", "--propagation", "private"),
            *("sh", "-c", _ENTER, "sh", lower, str(keep or ""), str(hold)),
            *("env", "-i", *(f"{name}={value}" for name, value in {**_ENVIRONMENT, **self.environment}.items())),
        ]

    def run(
        self,
        script: str,
        hold: Path,
        *,
        keep: Path | None = None,
        wheels: Path | None = None,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run lines of shell in it, as root."""
        return subprocess.run(
            [*self.prefix(hold, keep=keep), "sh", "-c", script],
            env={**os.environ, "WHEELS": str(wheels or "")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def cache() -> Path:
    """Return where trees are kept: the user's cache."""
    above = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(above) if Path(above).is_absolute() else Path.home() / ".cache") / "merlab-machines"


def of_release(release: str, packages: Sequence[str] = PACKAGES) -> Path:
    """Return a tree of this release, made by mmdebstrap if there is none yet: of Debian, from apt's own mirror."""
    packages = tuple(each for each in packages if each not in _LACKING.get(release, ()))
    digest = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:8]
    tree = cache() / f"{release}-{digest}"
    if not tree.is_dir():
        made = tree.with_name(f"{tree.name}.{os.getpid()}")
        made.parent.mkdir(parents=True, exist_ok=True)
        argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
        source = [release, str(made), mirror()]
        if release in UBUNTU:
            argv += ["--components=main,universe", f"--keyring={_ubuntu_keys()}"]
            source = [release, str(made)]
        try:
            subprocess.run([*argv, *source], check=True, timeout=1200)
            made.rename(tree)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return tree


def _ubuntu_keys() -> Path:
    """Return the key of Ubuntu's archive, from Debian 13's package of it."""
    folder = cache() / _KEYS
    if not folder.is_dir():
        made = folder.with_name(f"{folder.name}.{os.getpid()}")
        argv = ["mmdebstrap", "--quiet", "--variant=extract", f"--include={_KEYS}", "trixie", str(made), mirror()]
        try:
            subprocess.run(argv, check=True, timeout=300)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder / "usr/share/keyrings/ubuntu-archive-keyring.gpg"


def mirror() -> str:
    """Return the mirror that apt uses for the distribution itself, the first of its sources."""
    argv = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Origin: Debian"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def wheelhouse(python: str, lock: str = "run") -> Path:
    """Return a folder with the wheels of a lock for a version of Python ("3.13"): pip needs no network there."""
    folder = cache() / f"wheels-{python}"
    asked = _CHECKOUT / "requirements" / f"{lock}.txt"
    is_whole = folder / f".{lock}-{hashlib.sha256(asked.read_bytes()).hexdigest()[:8]}"
    if not is_whole.exists():
        subprocess.run([sys.executable, _CHECKOUT / "scripts/wheels.py", folder, python, lock], check=True, timeout=900)
        is_whole.touch()
    return folder


def offline(release: str) -> Path:
    """Return the folder that scripts/offline makes for a release of Debian: packages, and all wheels of its Python."""
    makes = ("scripts/offline", "requirements/dev.txt", "src/merbridge_lab/data/packages.txt")
    digest = hashlib.sha256(b"".join((_CHECKOUT / each).read_bytes() for each in makes)).hexdigest()[:8]
    folder = cache() / f"offline-{release}-{digest}"
    if not folder.is_dir():
        made = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            subprocess.run([_CHECKOUT / "scripts/offline", made, release, "dev"], check=True, timeout=900)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def copy_checkout(into: Path) -> None:
    """Copy the files that git has of this checkout, as they are now, into a new folder."""
    into.mkdir(parents=True)
    names = subprocess.run(["git", "ls-files", "-z"], cwd=_CHECKOUT, capture_output=True, check=True).stdout
    tar = ["tar", "-c", "--null", "-T", "-"]
    packed = subprocess.run(tar, cwd=_CHECKOUT, input=names, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", into], input=packed.stdout, check=True)


def install(
    base: Path,
    upper: Path,
    hold: Path,
    wheels: Path,
    where: str,
    *,
    first: str = "",
    user: str = "root",
    dev: bool = False,
) -> str:
    """Put this checkout and its .venv into a layer above a tree, by scripts/setup there; return what that said.

    There is no network there, only the wheels; with `dev`, also those of the tests. `first` are lines of shell to run
    before it, as root.
    """
    copy_checkout(upper / where[1:])
    tools = "dev" if dev else ""
    done = Userland(base).run(
        f"set -e; {first or ':'}; cd '{where}'; chown -R {user}: .; umask 022\n"
        f"exec su {user} -c 'PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels scripts/setup venv {tools}'",
        hold,
        keep=upper,
        wheels=wheels,
        timeout=900,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stderr
