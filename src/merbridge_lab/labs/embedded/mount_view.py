"""Check that a pod sees the machine's files, and merlab's, without replacements. The source is its own mount namespace.

The machine's curl sends a pod's requests, and the machine's Python runs its app. A mount over one of them, over a
module or over a whole directory, only in the pod, decides what is measured. So the pod's mounts are compared, mount by
mount, with those of merlab's own namespace (the pod's is a copy that follows it) and with those that filesystem.py
adds. The pod's own /run and /etc are compared entry by entry.

Two differences are allowed. First: a mount that the machine had when the pod was created and has no more, if its
unmounting did not reach the pod (private mounts do not follow). It cannot be told from a mount that somebody added, so
it is allowed only where a pod's programs read nothing: outside of `_READ`, and below the pod's own /run, which covers
it. Second: a mount of the machine's that the pod lacks. A mount that is newer than the pod need not reach it, and no
other one is below.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import mounts, netns
from merbridge_lab.labs.embedded import envoy, filesystem
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from merbridge_lab.adapters.mounts import Mount
    from merbridge_lab.labs.embedded.topology import PodSpec

#: Where a pod's programs find programs, libraries and settings, with everything below.
_READ = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/nix", "/gnu", "/dev/shm")  # noqa: S108
#: Places that matter only themselves; what is below them (debugfs, say, which the kernel mounts and unmounts) does not.
_READ_THEMSELVES = frozenset(map(Path, ("/dev", "/dev/null", "/dev/urandom", "/proc", "/sys")))
_ETC, _SHM = Path("/etc"), Path("/dev/shm")  # noqa: S108
#: Both tables are read one after the other, and a machine may mount in between (a container that starts): in seconds.
_SETTLED = 0.5


@dataclass(frozen=True)
class _Seen:
    """What a pod sees: its mounts, where its files of /etc are, and the content of its own file systems."""

    table: bytes
    mounts: tuple[Mount, ...]
    ends: dict[str, Path]
    run: tuple[Path, ...]
    etc: tuple[Path, ...]


#: The last state without problems of each mount namespace, by its inode. The kernel numbers every mount: an equal table
#: means equal mounts, so it need not be compared for each of many requests.
_IN_ORDER: dict[int, _Seen] = {}


def differences(mntns: Path, pod: PodSpec, run: Path, folder: Path) -> list[str]:
    """Describe, one sentence each, what a pod sees that merlab did not arrange. Raises OSError."""
    found: list[str] = []
    space = netns.inode(mntns)

    def same() -> bool:
        known, before = _IN_ORDER.get(space), mounts.raw()
        seen = _look(mntns, pod, run, known)
        found[:] = _entries(seen, run, folder)
        if known is None or (seen.table, seen.ends) != (known.table, known.ends):
            there = _counted(mounts.parse(before)) | _counted(mounts.table())
            found[:] = [*_compare(seen, there, pod, run, folder), *found]
        if not found:
            _IN_ORDER[space] = seen
        return not found

    poll_until(same, timeout=_SETTLED, awaiting="mounts of the machine to be made or gone")
    return [f"in the mount namespace of {pod.name} {each}" for each in dict.fromkeys(found)]


def shows_another_envoy(mntns: Path, run: Path) -> bool:
    """Report whether a pod would start something else than the package's Envoy, or an older package's."""
    try:
        program = netns.run_inside(mntns, lambda: os.open(run / "envoy", os.O_RDONLY | os.O_CLOEXEC), netns.NEWNS)
    except OSError:
        return True
    try:
        return bool(envoy.not_genuine(Path(f"/proc/self/fd/{program}")))
    finally:
        os.close(program)


def _look(mntns: Path, pod: PodSpec, run: Path, known: _Seen | None) -> _Seen:
    # The machine's /proc is opened before: in the pod, something may be mounted over it.
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def inside() -> _Seen:
        descriptor = os.open("thread-self/mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        with os.fdopen(descriptor, "rb") as file:
            text = file.read()
        table = known.mounts if known is not None and text == known.table else tuple(mounts.parse(text))
        return _Seen(
            text,
            table,
            {name: Path("/etc", name).resolve() for name in filesystem.texts(pod)},
            tuple(_walk(run.parent)) if any(_covers(mount, run.parent, run) for mount in table) else (),
            tuple(_foreign(run / "etc")) if any(_covers(mount, _ETC, run) for mount in table) else (),
        )

    try:
        return netns.run_inside(mntns, inside, netns.NEWNS)
    finally:
        os.close(proc)


# -- mounts ----------------------------------------------------------------------------------------------------------


def _counted(table: Iterable[Mount]) -> Counter[tuple[str, ...]]:
    return Counter(_key(mount, mount.target) for mount in table)


def _key(mount: Mount, target: Path) -> tuple[str, ...]:
    return (str(target), mount.device, mount.root, mount.fstype, mount.source)


def _covers(mount: Mount, target: Path, run: Path) -> bool:
    """Report whether this is one of the pod's own file systems that merlab mounts on `target`."""
    return (mount.target, mount.fstype, mount.source, mount.root) == (target, "tmpfs", run.name, "/")


def _compare(seen: _Seen, there: Counter[tuple[str, ...]], pod: PodSpec, run: Path, folder: Path) -> Iterator[str]:
    left, own = list(seen.mounts), set()
    for target, needed, fits in _arranged(seen, pod, run, folder):
        found = next((mount for mount in reversed(left) if mount.target == target and fits(mount)), None)
        if found is not None:
            left.remove(found)
            own.add(found.number)
        elif needed:
            yield f"{target} is not what merlab mounted there"
    for mount in left:
        key = _key(mount, mount.target)
        if there[key] > 0:
            there[key] -= 1
        elif (mount.parent in own or _is_read(mount.target, run)) and not _follows(mount, there, run):
            yield f"{mount.target} is covered by a mount that is not merlab's ({mount.fstype}, {mount.root})"


def _arranged(
    seen: _Seen, pod: PodSpec, run: Path, folder: Path
) -> Iterator[tuple[Path, bool, Callable[[Mount], bool]]]:
    """Return what filesystem.populate_mount_namespace mounts: where, whether it is required, how to recognize it."""
    device = run.stat().st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"

    def is_of_run(path: Path) -> Callable[[Mount], bool]:
        root = f"/{path.relative_to(run)}"
        return lambda mount: (mount.device, mount.root, mount.fstype) == (numbers, root, "tmpfs")

    yield run.parent, True, lambda mount: _covers(mount, run.parent, run)
    yield folder, True, is_of_run(folder)
    if pod.sidecar:
        # The digest tells which file it is; it is read from the process that runs it.
        yield run / "envoy", True, lambda _: True
    # The cover of /etc is only needed on some machines; the lines that a person types do not create the other one.
    yield _ETC, False, lambda mount: _covers(mount, _ETC, run)
    yield run / "etc", False, lambda mount: mount.root.endswith("/etc") or mount.root == "/"
    yield _SHM, False, lambda mount: (mount.fstype, mount.source, mount.root) == ("tmpfs", "none", "/")
    for name, end in seen.ends.items():
        yield end, True, is_of_run(folder / name)


def _is_read(target: Path, run: Path) -> bool:
    if run.parent in target.parents:
        return False  # covered by the pod's own mount: what is mounted on that has it as its parent
    if target in _READ_THEMSELVES or target == run.parent or target == Path("/"):
        return True
    return any(target == each or target in each.parents or each in target.parents for each in map(Path, _READ))


def _follows(mount: Mount, there: Counter[tuple[str, ...]], run: Path) -> bool:
    """Report whether it is a mount of the machine's below /etc that also appears below the cover of /etc."""
    behind = run / "etc"
    return behind in mount.target.parents and there[_key(mount, _ETC / mount.target.relative_to(behind))] > 0


# -- files -----------------------------------------------------------------------------------------------------------


def _entries(seen: _Seen, run: Path, folder: Path) -> Iterator[str]:
    ways = {run, *folder.parents, *(way for end in seen.ends.values() for way in end.parents)}
    # If a person mounts by hand, mount(8) keeps its notes here, which nobody else reads.
    ways |= {run.parent / "mount", *(run.parent / "mount" / name for name in ("utab", "utab.lock", "utab.event"))}
    for each in (*(each for each in seen.run if each not in ways), *seen.etc):
        yield f"there is {each}, which merlab did not put there"


def _walk(top: Path) -> Iterator[Path]:
    """Return the content of the file system of the directory `top`, without what is mounted there."""
    device = top.stat().st_dev
    for folder, names, files in os.walk(top):
        here = [name for name in (*names, *files) if Path(folder, name).lstat().st_dev == device]
        names[:] = [name for name in names if name in here]
        yield from (Path(folder, name) for name in here)


def _foreign(behind: Path) -> Iterator[Path]:
    """Return what is in a cover of /etc and is no link to the file behind it."""
    for each in _walk(_ETC):
        link, other = str(each.readlink()) if each.is_symlink() else "", behind / each.name
        if link != str(other) and not (other.is_symlink() and link == str(other.readlink())):
            yield each
