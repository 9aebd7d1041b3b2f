"""The node as this machine's kernel sees it: processes, cgroup and trace. Needs root, and a node with this kernel."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import cgroup
from merbridge_lab.errors import LabError
from merbridge_lab.text import read_text

if TYPE_CHECKING:
    from merbridge_lab.labs.kubernetes.provider import Node

_CGROUP2 = "cgroup2"
#: The cgroup, below the node's own, of systemd as PID 1.
_INIT = "init.scope"
#: The folder of a node that is a container, by its engine's cgroup driver: /ENGINE/ID, /system.slice/ENGINE-ID.scope.
_CONTAINER = re.compile(r"/(?:[a-z]+-)?[0-9a-f]{64}(?:\.scope)?(?=/|$)")


class OutsideError(LabError):
    """It cannot be determined which of the machine's cgroups are the node's."""

    default_id = "reading.failed"


@dataclass(frozen=True)
class NodeView:
    """A node, and the PID of its init here.

    `root` is its file system with everything that is mounted in it, seen from outside.
    """

    node: Node
    pid: int

    @property
    def root(self) -> Path:
        """The node's file system."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def cgroup_mount(self) -> str:
        """Where cgroup2 is mounted in the node; nothing if it is not."""
        return self._mounted()[1]

    def _mounted(self) -> tuple[str, str]:
        text = read_text(Path(f"/proc/{self.pid}/mountinfo"))
        return cgroup2_in(text)

    @property
    def cgroup_path(self) -> str:
        """Return the node's cgroup on this machine, as /proc/PID/cgroup names it here. Raises LabError.

        PID 1 of a node may be in a child of it, beside the pods: systemd's is in init.scope.
        """
        try:
            first = cgroup_of(Path(f"/proc/{self.pid}"))
            return cgroup_of_node(first, self._mounted()[0])
        except OSError as error:
            raise OutsideError(
                f"the cgroup of the node {self.node.name} cannot be read: {error.strerror}",
                hint="merlab status",
            ) from error
        except ValueError as error:
            raise OutsideError(
                f"the cgroup of the node {self.node.name} is not known: {error}", hint="merlab sysdump"
            ) from error

    def has(self, path: str) -> bool:
        """Report whether a cgroup, as /proc/PID/cgroup names it here, is the node's or below it. Raises LabError."""
        return is_below(path, self.cgroup_path)

    @property
    def cgroup(self) -> Path:
        """The cgroup that is the root for everything that runs in the node. Raises LabError."""
        mounted = self.cgroup_mount
        if not mounted:
            raise LabError(
                f"the node {self.node.name} has no cgroup2, and programs that intercept are attached to one",
                hint="boot with systemd.unified_cgroup_hierarchy=1, or use --dataplane none",
                id="requirement.missing",
            )
        return self.root / mounted.lstrip("/")

    @property
    def tracing(self) -> Path:
        """The node's tracefs."""
        return self.root / "sys/kernel/tracing"

    def process(self, pid: int) -> Path:
        """Return the /proc folder of a process of the node, by its PID there."""
        return self.root / "proc" / str(pid)

    def cgroup_folder(self, pid: int) -> Path:
        """Return the folder of the cgroup of a process of the node, by its PID there.

        Raise FileNotFoundError if the process is gone, LabError if its cgroup is not one of the node's.
        """
        own, path = self.cgroup_path.rstrip("/"), cgroup_of(self.process(pid))
        if not is_below(path, own):
            raise OutsideError(
                f"process {pid} of the node {self.node.name} is in the cgroup {path or 'of no cgroup2'}, which is not"
                f" below the node's, {own}",
                hint="merlab sysdump",
            )
        return self.cgroup / path.removeprefix(own).lstrip("/")

    def cgroup_id(self, pid: int) -> int:
        """Return the id of that cgroup; raise as cgroup_folder does."""
        # bpf_get_current_cgroup_id() returns the inode of the cgroup's folder.
        return self.cgroup_folder(pid).stat().st_ino

    def mount_trace(self) -> None:
        """Ensure that tracefs is mounted in the node. Raises LabError."""
        where = "/sys/kernel/tracing"
        text = 'mountpoint -q "$1" || mount -t tracefs tracefs "$1"'
        self.node.execute(["sh", "-c", text, "sh", where])


def find(node: Node) -> NodeView:
    """Find a node on this machine. Raise LabError if its processes are not visible from here."""
    if os.geteuid() != 0:
        raise LabError("only root can see the eBPF programs in this kernel", hint="sudo merlab up", id="root.needed")
    return NodeView(node, node.init_pid())


def cgroup_of(process: Path) -> str:
    """Return the cgroup2 path of a process, seen from here."""
    return cgroup.in_version_2(read_text(process / "cgroup"))


def cgroup2_in(mountinfo: str) -> tuple[str, str]:
    """Return, from a mountinfo, the root and the mount point of the node's cgroup2; two empty ones if it has none.

    The kernel names the root as the *reader's* cgroup namespace sees it: read here, it is the node's path here.
    """
    # Not splitlines: a mount point may contain characters that Python takes for line ends.
    for line in mountinfo.split("\n"):
        left, _, right = line.partition(" - ")
        if right.startswith(f"{_CGROUP2} ") and left.split()[4].startswith("/sys/fs/cgroup"):
            return left.split()[3], left.split()[4]
    return "", ""


def cgroup_of_node(first: str, mounted: str = "") -> str:
    """Return the cgroup of a node: `first` is that of its PID 1, `mounted` the root of the cgroup2 it has mounted.

    If the node has no cgroup namespace of its own, the machine's whole cgroup2 is mounted there. Its cgroup is then the
    one that is named after its container, or the one that systemd's init.scope is in. Raises ValueError.
    """
    if not first:
        raise ValueError("its first process is in no cgroup2")
    if mounted not in ("", "/") and is_below(first, mounted):
        return mounted
    named = [match.end() for match in _CONTAINER.finditer(first)]
    if named:
        return first[: named[-1]]
    own = first.removesuffix(f"/{_INIT}") or "/"
    if mounted not in ("", "/"):
        raise ValueError(f"its first process is in {first}, and what it has mounted is {mounted}")
    return own


def is_below(path: str, top: str) -> bool:
    """Report whether a cgroup is `top` or below it."""
    top = top.rstrip("/")
    return path == top or path.startswith(f"{top}/")


def is_outside(place: NodeView) -> bool:
    """Report whether this process is outside the node's cgroup, and so out of reach of programs attached there.

    Raise LabError if that is not known.
    """
    return not place.has(cgroup_of(Path("/proc/self")))
