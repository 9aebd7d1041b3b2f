"""Be woken when a pod's cgroup appears, changes or vanishes: the kubelet creates one for each pod and container."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from merbridge_lab.adapters.inotify import Inotify

if TYPE_CHECKING:
    from typing_extensions import Self

#: The topmost of the kubelet's directories, those above pods', with either driver, and that of a pod with its uid. With
#: systemd's and a root of the kubelet's own, that root comes first in each name: kubelet-kubepods-besteffort.slice.
_TOP = re.compile(r"kubepods|(.+-)?kubepods\.slice")
_ABOVE = re.compile(rf"{_TOP.pattern}|besteffort|burstable|(.+-)?kubepods-(besteffort|burstable)\.slice")
_POD = re.compile(r"(?:(?:.+-)?kubepods-(?:(?:besteffort|burstable)-)?)?pod([0-9a-zA-Z_-]+?)(?:\.slice)?")
#: How deep below the root of the hierarchy the kubelet's own root may be.
_DEEP = 3


def uid_of(folder: Path) -> str | None:
    """Return the uid of the pod whose cgroup this directory is; None if it is not a pod's."""
    found = _POD.fullmatch(folder.name)
    return found[1].replace("_", "-") if found else None


class Woken(NamedTuple):
    """What happened: the uids of pods whose cgroup appeared or changed, and of those whose cgroup vanished."""

    changed: set[str]
    gone: set[str]


class PodWatch:
    """Watches the cgroups of pods below `root`; `fileno` is for select."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._inotify = Inotify()
        #: The directory of each pod that has one, by its uid.
        self.pods: dict[str, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inotify.__exit__()

    def fileno(self) -> int:
        """Return the descriptor that is readable when something happened."""
        return self._inotify.fileno()

    def scan(self) -> None:
        """Watch what there is; directories that are watched already stay so."""
        self.pods.clear()
        for top in self._tops(self._root, _DEEP):
            self._watch(top)

    def _tops(self, folder: Path, deep: int) -> list[Path]:
        found = []
        for child in _folders(folder):
            if _TOP.fullmatch(child.name):
                found.append(child)
            elif deep > 1:
                found += self._tops(child, deep - 1)
        return found

    def _watch(self, folder: Path) -> None:
        """Watch the directory of a pod, or one above; what appeared in it before it was watched is found, too."""
        uid = uid_of(folder)
        if uid is None and not _ABOVE.fullmatch(folder.name):
            return
        with contextlib.suppress(OSError):  # gone meanwhile
            self._inotify.watch(folder)
        if uid is not None:
            self.pods[uid] = folder
            return
        for child in _folders(folder):
            self._watch(child)

    def events(self) -> Woken:
        """Return what has happened since the last call, without waiting."""
        changed: set[str] = set()
        gone: set[str] = set()
        for event in self._inotify.events():
            if event.path is None:
                self.scan()
                changed |= self.pods.keys()
                continue
            uid, above = uid_of(event.path), uid_of(event.path.parent)
            if above is not None:  # a container of a pod
                changed.add(above)
            elif uid is not None and not event.is_new:
                gone.add(uid)
                self.pods.pop(uid, None)
            elif event.is_new:
                before = set(self.pods)
                self._watch(event.path)
                changed |= self.pods.keys() - before
        return Woken(changed - gone, gone)


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
