"""Lies about space and visibility: a file system that is full, a /proc that shows nothing."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from lies_mesh import pod
from saboteur import lie

from merbridge_lab.adapters import mounts


@lie("the lab's file system is full", "/run/.* is full", refused=True, quick=False)
def _(scene):
    """Something fills the tmpfs of the lab, on which the sidecars write their access logs."""
    filler = scene.lab.machine.run / "filler"
    room = os.statvfs(scene.lab.machine.run)
    with contextlib.suppress(OSError), filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)
    yield
    filler.unlink()


@lie(
    "/proc of the {kind} of {name} is covered",
    r"/proc/\d+ is covered by a mount",
    {"name": ["sleep", "helloworld-v1"], "kind": ["app", "sidecar"]},
    quick=False,
    shared=True,  # every process of the machine is checked for sockets that it holds
)
def _(scene, name, kind):
    """Something is mounted over the directory in /proc of the {kind} of {name}: nothing of it can be read."""
    target = pod(scene, name)
    place = Path("/proc", str(target.app_pid if kind == "app" else target.sidecar_pid))
    mounts.mount("none", place, "tmpfs")
    try:
        yield
    finally:
        mounts.umount(place)
