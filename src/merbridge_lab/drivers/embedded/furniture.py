"""What a pod finds in its file system: names, its own directory, Envoy, and nothing of the lab besides.

All of it is in the pod's own mount namespace; the host's /etc is never written to.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import mounts
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.files import has, put
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from merbridge_lab.drivers.embedded.layout import PodSpec

#: A name that is in no hosts file is asked of a port nobody listens on, so it fails at once.
_RESOLV = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"
#: The host may list nss-resolve or mDNS, which would answer past the pod's hosts file, or wait.
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"


def texts(pod: PodSpec) -> dict[str, str]:
    """Give the files of /etc that a pod has of its own, by name."""
    lines = ["127.0.0.1 localhost", f"{pod.ip} {pod.name}"]
    lines += [f"{service.vip} {' '.join(service.names)}" for service in pod.services]
    return {"hosts": "\n".join(lines) + "\n", "resolv.conf": _RESOLV, "nsswitch.conf": _NSSWITCH}


def differences(pod: PodSpec, root: Path) -> list[str]:
    """Say which of those files is another one for a process with the root directory `root`."""
    return [
        f"/etc/{name} of {pod.name} is not the one that merlab gave it"
        for name, text in texts(pod).items()
        if Path("/etc", name).exists() and not has(root / "etc" / name, text)
    ]


def write(pod: PodSpec, folder: Path) -> bool:
    """Write those files to the pod's directory; say whether anything changed. Raises OSError."""
    changed = False
    for name, text in texts(pod).items():
        if not has(folder / name, text):
            put(folder / name, text)
            changed = True
    return changed


@change("arrange a pod's file system")
def arrange(run: Path, pod: PodSpec, folder: Path, envoy: Path | None) -> None:
    """Arrange the mount namespace this thread has just made. Raises OSError, LabError."""
    # Opened before the run directory is covered: the way to them afterwards.
    own = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    program = os.open(envoy, os.O_PATH | os.O_CLOEXEC) if envoy is not None else None
    try:
        # The copies of other pods' namespaces would keep those alive as long as this pod lives.
        for mount in mounts.below(run):
            if mount.target not in (run, envoy):
                mounts.umount(mount.target)
        # Other pods' keys are none of its business: it sees a run directory with its own part alone.
        mounts.mount(run.name, run, "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, "mode=0755,size=1m")
        folder.mkdir(parents=True)
        mounts.bind(f"/proc/self/fd/{own}", folder)
        if program is not None:
            (run / "envoy").touch()
            mounts.bind(f"/proc/self/fd/{program}", run / "envoy")
    finally:
        os.close(own)
        if program is not None:
            os.close(program)
    for name in texts(pod):
        target = Path("/etc", name)
        if target.exists():
            mounts.bind(folder / name, target)
        elif name == "hosts":
            # Without the other two glibc does by default what they say.
            raise LabError("there is no /etc/hosts on this machine to put the pods' own over", hint="touch /etc/hosts")
    # Envoy aborts without it.
    if not Path("/dev/shm").is_dir():  # noqa: S108
        raise LabError("there is no /dev/shm on this machine", hint="mkdir -m 1777 /dev/shm")
    mounts.mount("none", "/dev/shm", "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, "mode=1777,size=16m")  # noqa: S108
    # A caching name server of the host would answer from the host's own hosts file.
    if Path("/run/nscd").is_dir():
        mounts.mount("none", "/run/nscd", "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, "mode=0755,size=4k")
