"""What the lab uses of the machine: a run directory, a cgroup, private mounts of the kernel's file systems.

The kernel is the state. Everything is found by the lab's name, so that removing it needs no record.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from merbridge_lab import shortage
from merbridge_lab.adapters import cgroup, kernel_features, mounts, overmounts, own_container, procfs
from merbridge_lab.adapters.files import delete_folder, make_folder, set_mode
from merbridge_lab.errors import ClaimFailedError, LabError
from merbridge_lab.labs.embedded import lab_paths, topology

if TYPE_CHECKING:
    from collections.abc import Callable

#: Enough for access logs of about a million requests; usually it holds a few hundred kilobytes.
_SIZE = "512m"
_FOLDERS = ("netns", "mnt", "bpf", "pods", "saved")
#: A pod has its own folder bind-mounted, so it does not need to pass this one.
_MODES = {"pods": 0o700, "saved": 0o700}
_BRANCHES = ("mesh", "twins")


class Machine:
    """The lab's place on this machine; `name` tells labs apart (tests have their own)."""

    def __init__(self, name: str = topology.NAME) -> None:
        self.name = name
        self.run: Path = topology.RUN.with_name(name)
        self.bpffs = self.run / "bpf"
        self.saved = self.run / "saved"
        self._own_cgroup2 = self.run / "cgroup"
        self._cgroup_root = cgroup.find_root(self.run) or self._own_cgroup2
        self._above = _above(name)

    @property
    def cgroup_root(self) -> Path:
        """Where all of cgroup2 is mounted, or will be."""
        return self._cgroup_root

    @property
    def cgroup(self) -> Path:
        """The lab's cgroup; BPF programs are attached below it and nowhere above."""
        return self._cgroup_root / self._above / self.name

    @property
    def mesh_cgroup(self) -> Path:
        """The cgroup of the pods that the dataplane serves."""
        return self.cgroup / "mesh"

    def netns(self, name: str) -> Path:
        """Return where the network namespace of a pod, or of the node, is pinned."""
        return self.run / "netns" / name

    def mntns(self, name: str) -> Path:
        """Return where the mount namespace of a pod is pinned."""
        return self.run / "mnt" / name

    @property
    def exists(self) -> bool:
        """Report whether anything of the lab exists."""
        return self._is_mounted() or (self.cgroup.is_dir() and not self._strangers())

    def _is_mounted(self) -> bool:
        return lab_paths.own(self.run, self.name, mounts.table()) is not None

    # -- its places ------------------------------------------------------------------------------------------------

    def covers(self) -> list[str]:
        """Describe, one sentence each, which mounts replace what merlab put there."""
        return lab_paths.problems(self.run, self.name, self.cgroup)

    def require_own(self) -> None:
        """Raise ClaimFailedError if one of the lab's places is not what merlab put there."""
        if found := self.covers():
            raise ClaimFailedError(found[0])

    def uncover(self) -> None:
        """Remove what covers the lab's places: mounts over them, links, pins of other namespaces.

        Raise LabError if the lab is hidden by what may be somebody's: a mount on a directory above.
        """
        table = mounts.table()
        lab = lab_paths.own(self.run, self.name, table)
        if lab is not None and (over := lab_paths.hidden_by(self.run, lab, table)) is not None:
            raise LabError(
                f"{self.run} is hidden by a mount on {over}", hint=f"umount -l {over}", id="run_directory.foreign"
            )
        lab_paths.uncover(self.run, self.name, self.cgroup)
        if lab is not None:
            lab_paths.tidy(self.run)

    # -- making ----------------------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Create what is missing.

        Raise LabError if something else has the name, or the machine does not allow it; what a first attempt created
        until then is removed again.
        """
        fresh = not self._is_mounted()
        self.uncover()
        try:
            self._take_run_directory()
            for name in _FOLDERS:
                make_folder(self.run / name)
                # Independent of root's umask. What is below, keys and saved rules, is only for root.
                set_mode(self.run / name, _MODES.get(name, 0o755))
            self._take_cgroup()
            cgroup.uncover(self.cgroup)
            for each in (self.cgroup, *(self.cgroup / name for name in _BRANCHES)):
                cgroup.release(each)
            self._mount(self.bpffs, "bpf", "a BPF file system", "kernel.bpffs", "mode=0700")
        except BaseException:
            if fresh:
                if not self._strangers():
                    cgroup.remove(self.cgroup, timeout=5)
                self._leave_run_directory()
            raise

    def _take_run_directory(self) -> None:
        if not self._is_mounted():
            self._claim()
            try:
                mounts.mount(
                    self.name, self.run, "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, f"mode=0755,size={_SIZE}"
                )
            except OSError as error:
                raise LabError(
                    f"a tmpfs cannot be mounted on {self.run}: {error.strerror}",
                    hint="run merlab as root on the machine itself, not in an unprivileged container",
                    id="requirement.missing",
                ) from error
        # A mount namespace cannot be pinned on a shared mount, and no other namespace needs to see our mounts.
        mounts.mount("none", self.run, flags=mounts.MS_PRIVATE)

    def _claim(self) -> None:
        try:
            make_folder(self.run, mode=0o755, exist_ok=False)
            set_mode(self.run, 0o755)
        except FileExistsError:
            if self.run.is_symlink() or not self.run.is_dir() or os.path.ismount(self.run) or any(self.run.iterdir()):
                raise LabError(
                    f"{self.run} is there and is not merlab's",
                    hint=f"mv {self.run} {self.run}.other",
                    id="run_directory.foreign",
                ) from None
        except OSError as error:
            raise shortage.of(error) or LabError(
                f"{self.run} cannot be made: {error.strerror}",
                hint=f"ls -ld {self.run.parent}",
                id="requirement.missing",
            ) from error

    def _take_cgroup(self) -> None:
        if self._cgroup_root == self._own_cgroup2:
            make_folder(self._own_cgroup2)
            self._mount(self._own_cgroup2, "cgroup2", "cgroup version 2", "kernel.cgroup2")
        self._refuse_strangers()
        try:
            for name in _BRANCHES:
                make_folder(self.cgroup / name, parents=True)
        except OSError as error:
            raise shortage.of(error) or LabError(
                f"the cgroup {self.cgroup} cannot be made: {error.strerror}",
                hint=f"ls -ld {self.cgroup.parent}",
                id="requirement.missing",
            ) from error

    def _strangers(self) -> list[str]:
        """Return the processes in the cgroup of our name that are not ours."""
        if not self.cgroup.is_dir():
            return []
        folders = [each.name for each in self.cgroup.iterdir() if each.is_dir() and each.name not in _BRANCHES]
        own = [f"the process {pid}" for pid in cgroup.processes(self.cgroup)] + [f"the cgroup {n}" for n in folders]
        return own or (["processes of another container"] if self._is_of_another_root() else [])

    def _is_of_another_root(self) -> bool:
        """Report whether all that runs in the cgroup of our name has another root directory, or no PID here.

        So it is with a lab in another container where both see the machine's process 1 (docker run --pid host).
        """
        running = cgroup.all_processes(self.cgroup)
        return bool(running) and all(procfs.has_another_root(pid) for pid in running)

    def _refuse_strangers(self) -> None:
        if self.cgroup.is_dir() and self._is_of_another_root():
            raise LabError(
                f"the cgroup {self.cgroup} is that of a lab in another container, or on the machine itself",
                hint="export MERLAB_NAME=merlab-two",
                id="cgroup.foreign",
            )
        if strangers := self._strangers():
            raise LabError(
                f"the cgroup {self.cgroup} holds {strangers[0]}, which is not merlab's",
                hint=f"systemd-cgls {self.cgroup}",
                id="cgroup.foreign",
            )

    @staticmethod
    def _mount(target: Path, fstype: str, what: str, feature: str, options: str = "") -> None:
        if mounts.at(target) is not None:
            return
        try:
            mounts.mount("none", target, fstype, data=options)
        except OSError as error:
            raise kernel_features.cannot(feature, f"{target}: {error.strerror}", named=what) from error

    # -- removing --------------------------------------------------------------------------------------------------

    def remove(self, timeout: float = 10.0) -> None:
        """Kill, unmount and delete everything with the lab's name; succeed if nothing is there.

        Raise LabError if processes do not end within `timeout` seconds, or the cgroup is not merlab's.
        """
        self.uncover()
        if self._is_mounted():
            self._refuse_strangers()
        if self.exists:
            cgroup.remove(self.cgroup, timeout)
        self._leave_run_directory()

    def _leave_run_directory(self) -> None:
        if self._is_mounted():
            mounts.take_away(self.run)
        elif self.run.is_dir() and not self.run.is_symlink():
            # What a merlab killed between mkdir and mount leaves; a directory with content is not ours.
            with contextlib.suppress(OSError):
                delete_folder(self.run)

    # -- looking ---------------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """Describe, one sentence each, what differs from what `ensure` creates."""
        if not self._is_mounted():
            return [f"the lab's tmpfs is not mounted on {self.run}"]
        odd = [f"{each} is {what}: merlab up, or rm {each}" for each, what in lab_paths.links(self.run)]
        if covered := [*odd, *self.covers(), *overmounts.problems(self.cgroup)]:
            return covered
        there: list[tuple[bool, str]] = [
            (mounts.at(self.bpffs) is not None, f"no BPF file system is mounted on {self.bpffs}"),
            *((_is_folder(self.run / name), f"{self.run / name} is missing") for name in _FOLDERS),
            *((_is_folder(self.cgroup / name), f"the cgroup {self.cgroup / name} is missing") for name in _BRANCHES),
        ]
        closed = [
            f"{self.run / name} is open to others than root"
            for name, mode in _MODES.items()
            if _is_folder(self.run / name) and (self.run / name).stat().st_mode & 0o777 != mode
        ]
        groups = (self.cgroup, *(self.cgroup / name for name in _BRANCHES))
        limits = [f"the cgroup {each} is limited: {limit}" for each in groups for limit in cgroup.limits(each)]
        return [sentence for held, sentence in there if not held] + closed + limits

    def shell_commands(self) -> list[str]:
        """Return the lines that a person would type as root to create it."""
        own = self._cgroup_root == self._own_cgroup2
        folders = ",".join((*_FOLDERS, "cgroup") if own else _FOLDERS)
        return [
            f"mkdir {self.run} && mount -t tmpfs -o mode=0755,size={_SIZE} {self.name} {self.run}",
            f"mount --make-private {self.run} && mkdir {self.run}/{{{folders}}}",
            f"chmod 700 {self.run}/{{{','.join(_MODES)}}}",
            *([f"mount -t cgroup2 none {self._own_cgroup2}"] if own else []),
            f"mkdir -p {self.cgroup}/{{{','.join(_BRANCHES)}}}",
            f"mount -t bpf -o mode=0700 none {self.bpffs}",
        ]


def _above(name: str) -> PurePath:
    """Return the cgroup that the lab's is made in, relative to the root of the hierarchy."""
    if not own_container.has_machines_pids():
        return cgroup.of_machine()
    own = cgroup.of_machine(Path("/proc/self"))
    # Whoever calls merlab may be in a pod of the lab.
    return PurePath(*itertools.takewhile(lambda part: part != name, own.parts))


_is_folder: Callable[[Path], bool] = os.path.isdir
