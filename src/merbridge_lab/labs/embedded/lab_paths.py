"""The lab's places in the file system: each is what merlab put there, once, with no mount over it and no link instead.

Everything is found by its path: namespaces, programs and maps by their pins, saved rules, logs. A mount over such a
path decides what merlab reads and, worse, what it changes: merlab flushes rules, creates links and writes settings in
whatever network namespace a pin leads to. So before any change, the table of mounts is compared with what merlab mounts
there, mount by mount.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import mounts
from merbridge_lab.adapters.change import change

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from merbridge_lab.adapters.mounts import Mount

#: What merlab mounts in its run directory, by the path below it; `tracing` only in labs of an earlier merlab,
#: which are taken over or removed. The digest tells which file Envoy's view shows.
_FILE_SYSTEMS = {"bpf": "bpf", "tracing": "tracefs", "cgroup": "cgroup2"}
_VIEW = "envoy"
#: Folders of pins, and the kernel's name for a namespace that is pinned there.
_PINS = {"netns": "net:[", "mnt": "mnt:["}
_OWN_NETNS = Path("/proc/self/ns/net")


def own(run: Path, name: str, table: Sequence[Mount]) -> Mount | None:
    """Return the mount of the lab called `name` on its run directory, covered or not; None if there is none."""
    return next((mount for mount in table if _is_own_run(mount, run, name)), None)


def _is_own_run(mount: Mount, run: Path, name: str) -> bool:
    return (mount.target, mount.fstype, mount.source, mount.root) == (run, "tmpfs", name, "/")


def hidden_by(run: Path, lab: Mount, table: Sequence[Mount]) -> Path | None:
    """Return the mount on a directory above `run` that is newer than the lab and hides it; None if there is none."""
    try:
        if run.stat().st_dev == _device(lab) or any(mount.target == run and mount != lab for mount in table):
            return None
    except OSError:
        pass
    later = table[table.index(lab) + 1 :]
    return next((mount.target for mount in reversed(later) if mount.target in run.parents), run.parent)


def _device(mount: Mount) -> int:
    major, minor = mount.device.split(":")
    return os.makedev(int(major), int(minor))


def strangers(run: Path, name: str, cgroup: Path, table: Sequence[Mount]) -> list[Mount]:
    """Return the mounts on and below `run` and `cgroup` that are not merlab's, in the order of their creation.

    A second mount on the same place counts as one, whatever it is.
    """
    taken: set[Path] = set()
    found = []
    for mount in table:
        if not mount.is_within(run):
            if mount.is_within(cgroup):
                found.append(mount)
        elif mount.target not in taken and _fits(mount, run, name):
            taken.add(mount.target)
        else:
            found.append(mount)
    return found


def _fits(mount: Mount, run: Path, name: str) -> bool:
    if mount.target == run:
        return _is_own_run(mount, run, name)
    folder, *rest = mount.target.relative_to(run).parts
    if folder in _PINS:
        return len(rest) == 1 and mount.fstype == "nsfs" and mount.root.startswith(_PINS[folder])
    return not rest and (folder == _VIEW or (mount.fstype, mount.root) == (_FILE_SYSTEMS.get(folder), "/"))


#: The last table without problems, as the kernel wrote it, by the lab's name: the same text means the same mounts.
_IN_ORDER: dict[str, bytes] = {}


def problems(run: Path, name: str, cgroup: Path) -> list[str]:
    """Describe, one sentence each, which mounts replace what merlab put there, and what removes them."""
    raw = mounts.raw()
    if raw == _IN_ORDER.get(name):
        return []
    table = mounts.parse(raw)
    lab = own(run, name, table)
    if lab is not None and (over := hidden_by(run, lab, table)) is not None:
        return [f"{run} is hidden by a mount on {over} (umount -l {over})"]
    found = [
        f"{each.target} is covered by a mount that is not merlab's ({each.fstype}, {each.root}): merlab up, or "
        f"umount -l {each.target}"
        for each in strangers(run, name, cgroup, table)
    ]
    # A path does not lead to what is under a cover.
    found = found or [f"{pin} leads to {what}: merlab up" for pin, what in _doubtful(run, table)]
    if not found:
        _IN_ORDER[name] = raw
    return found


def _doubtful(run: Path, table: Sequence[Mount]) -> Iterator[tuple[Path, str]]:
    """Describe pins that show the same namespace as another pin, or merlab's own namespace, which is the machine's."""
    first: dict[str, Path] = {}
    machines = f"net:[{_OWN_NETNS.stat().st_ino}]"
    folders = {run / folder for folder in _PINS}
    for mount in table:
        if not mount.is_within(run) or mount.target.parent not in folders:
            continue
        if mount.root == machines:
            yield mount.target, "the network namespace of the machine itself"
        elif (other := first.setdefault(mount.root, mount.target)) != mount.target:
            yield mount.target, f"the same namespace as {other} ({mount.root})"


_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


def links(run: Path) -> list[tuple[Path, str]]:
    """List what is neither a folder nor a plain file on the lab's own file system, and what it is instead.

    merlab does not remove such entries among the saved rules: the code that reads those reports them. In `shell` there
    are links by design: the tools of people's shells (shell.py), which merlab itself never uses.
    """
    if not run.is_dir():
        return []
    device, found = run.stat().st_dev, []
    for folder, names, files in os.walk(run):
        if folder == str(run / "saved"):
            continue
        if folder == str(run / "shell"):
            names.clear()
            continue
        for path in (Path(folder, name) for name in (*names, *files)):
            seen = path.lstat()
            if seen.st_dev != device:
                if path.name in names:
                    names.remove(path.name)
            elif (kind := stat.S_IFMT(seen.st_mode)) in _KINDS:
                found.append((path, _KINDS[kind]))
    return found


def uncover(run: Path, name: str, cgroup: Path) -> None:
    """Unmount what covers the lab's places, the latest first. Raises OSError."""
    for mount in reversed(strangers(run, name, cgroup, mounts.table())):
        mounts.umount(mount.target)


def tidy(run: Path) -> None:
    """Remove links that replace files and folders, and pins of namespaces that are not a pod's. Raises OSError.

    The target of a link stays. If two pods share one namespace, nobody can tell which is right: both get another.
    """
    for path, _ in links(run):
        _unlink(path)
    table = mounts.table()
    wrong = {pin for pin, _ in _doubtful(run, table)}
    roots = {mount.root for mount in table if mount.target in wrong}
    for mount in table:
        if mount.root in roots and mount.target != run and mount.is_within(run):
            mounts.take_away(mount.target)


@change("take away a link")
def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def is_machines(pin: Path) -> bool:
    """Report whether the network namespace pinned at `pin` is merlab's own, where nothing may be changed."""
    return pin.exists() and os.path.samestat(pin.stat(), _OWN_NETNS.stat())
