"""The file system of a pod: host names, its own directory, Envoy, and nothing else of the lab.

All of it is in the pod's own mount namespace; merlab never writes to the host's /etc.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from merbridge_lab.adapters import mounts, netns
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.files import has_content, write_atomic
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.labs.embedded.topology import PodSpec

T = TypeVar("T")

#: A name that is in no hosts file is looked up at a port where nobody listens, so it fails at once.
_RESOLV = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"
#: The host may list nss-resolve or mDNS, which would bypass the pod's hosts file, or wait.
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"
#: The socket of nscd: if it exists, the C library asks nscd first.
_CACHE = Path("/var/run/nscd/socket")


def texts(pod: PodSpec) -> dict[str, str]:
    """Return the files of /etc that are the pod's own, by name."""
    lines = ["127.0.0.1 localhost", f"{pod.ip} {pod.name}"]
    lines += [f"{service.vip} {' '.join(service.names)}" for service in pod.services]
    return {"hosts": "\n".join(lines) + "\n", "resolv.conf": _RESOLV, "nsswitch.conf": _NSSWITCH}


def differences(pod: PodSpec, pid: int) -> list[str]:
    """Describe which of those files is another one for the process `pid`, and what answers names before them."""

    def look() -> tuple[dict[str, str | None], bool]:
        return {name: _text(Path("/etc", name)) for name in texts(pod)}, os.path.lexists(_CACHE)

    found, is_cached = within(pid, look)
    told = [f"a name service cache answers names in {pod.name}, before /etc/hosts ({_CACHE})"] * is_cached
    return told + [
        f"/etc/{name} of {pod.name} is not the one that merlab gave it"
        for name, text in texts(pod).items()
        if found[name] != text
    ]


def within(pid: int, work: Callable[[], T]) -> T:
    """Run `work` in the mount namespace of `pid`: an absolute link there resolves as it does in the pod."""
    return netns.run_inside(Path(f"/proc/{pid}/ns/mnt"), work, netns.NEWNS)


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return None


def write(pod: PodSpec, folder: Path) -> bool:
    """Write those files to the pod's directory; return whether anything changed. Raises OSError."""
    changed = False
    for name, text in texts(pod).items():
        if not has_content(folder / name, text):
            write_atomic(folder / name, text)
            changed = True
    return changed


@change("arrange a pod's file system")
def populate_mount_namespace(run: Path, pod: PodSpec, folder: Path, envoy: Path | None) -> None:
    """Populate the mount namespace that this thread has just created. Raises OSError, LabError."""
    # Opened before the run directory is covered: later, the descriptors are the only way to it.
    own = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    program = os.open(envoy, os.O_PATH | os.O_CLOEXEC) if envoy is not None else None
    try:
        # Copies of other pods' namespaces would keep those alive as long as this pod lives.
        for mount in mounts.below(run):
            if mount.target not in (run, envoy):
                mounts.umount(mount.target)
        # The pod must not see the keys of other pods and labs, nor the content of the system's /run: it sees a /run
        # with only its own part. Mounts that the host adds later are hidden below it.
        mounts.mount(run.name, run.parent, "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, "mode=0755,size=1m")
        _make(run, folder)
        mounts.bind(f"/proc/self/fd/{own}", folder)
        if program is not None:
            (run / "envoy").touch()
            mounts.bind(f"/proc/self/fd/{program}", run / "envoy")
    finally:
        os.close(own)
        if program is not None:
            os.close(program)
    _put_texts(run, pod, folder)
    # Envoy aborts without it.
    if not Path("/dev/shm").is_dir():  # noqa: S108
        raise LabError("there is no /dev/shm on this machine", hint="mkdir -m 1777 /dev/shm", id="requirement.missing")
    mounts.mount("none", "/dev/shm", "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, "mode=1777,size=16m")  # noqa: S108


@change("arrange a pod's file system")
def _make(top: Path, folder: Path) -> None:
    """Create a directory and those between it and `top`, open to all whatever root's umask is."""
    for each in [*reversed([each for each in folder.parents if top in each.parents or each == top]), folder]:
        each.mkdir(exist_ok=True)
        each.chmod(0o755)


@change("arrange a pod's file system")
def _put_texts(run: Path, pod: PodSpec, folder: Path) -> None:
    """Mount the pod's texts over those of /etc.

    They may be links. If such a link leads into /run, which is the pod's own, its target is created. If it leads
    nowhere, or the file does not exist, /etc gets a cover.
    """
    for name in texts(pod):
        end = Path("/etc", name).resolve()
        if run.parent in end.parents and not end.exists():
            _make(run.parent, end.parent)
            end.touch()
    if not all(Path("/etc", name).resolve().is_file() for name in texts(pod)):
        _cover_etc(run, set(texts(pod)))
    for name in texts(pod):
        mounts.bind(folder / name, Path("/etc", name).resolve())


@change("arrange a pod's file system")
def _cover_etc(run: Path, own: set[str]) -> None:
    """Mount an /etc that shows everything of the machine's /etc, with empty files of its own for the names `own`."""
    behind = run / "etc"
    behind.mkdir()
    mounts.bind("/etc", behind)
    mounts.mount(run.name, "/etc", "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, "mode=0755,size=1m")
    for each in behind.iterdir():
        if each.name not in own:
            link = each.readlink() if each.is_symlink() else each
            Path("/etc", each.name).symlink_to(link)
    for name in own:
        Path("/etc", name).touch()
