"""The node as this machine's kernel has it: its processes, cgroup and trace. Takes root, and Docker on this machine."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from merbridge_lab.adapters import docker
from merbridge_lab.drivers.kind import layout
from merbridge_lab.errors import LabError

_CGROUP2 = "cgroup2"


@dataclass(frozen=True)
class Place:
    """A node's container. `root` is its file system with all that is mounted in it, seen from outside."""

    node: str
    pid: int

    @property
    def root(self) -> Path:
        """Its file system."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def cgroup_mount(self) -> str:
        """Where, in the node, cgroup2 is mounted; nothing where it is not."""
        for line in Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            if right.startswith(f"{_CGROUP2} ") and left.split()[4].startswith("/sys/fs/cgroup"):
                return left.split()[4]
        return ""

    @property
    def cgroup(self) -> Path:
        """The cgroup that is the root for all that runs in the node. Raises LabError."""
        mounted = self.cgroup_mount
        if not mounted:
            raise LabError(
                f"the node {self.node} has no cgroup2, and programs that intercept are attached to one",
                hint="boot with systemd.unified_cgroup_hierarchy=1; --dataplane none does without",
            )
        return self.root / mounted.lstrip("/")

    @property
    def tracing(self) -> Path:
        """The node's tracefs."""
        return self.root / "sys/kernel/tracing"

    def process(self, pid: int) -> Path:
        """Give the /proc folder of a process of the node's, by its PID there."""
        return self.root / "proc" / str(pid)

    def cgroup_id(self, pid: int) -> int:
        """Give the id of the cgroup of a process of the node's, by its PID there. Raises OSError."""
        own = cgroup_of(Path(f"/proc/{self.pid}")).rstrip("/")
        below = cgroup_of(self.process(pid)).removeprefix(own).lstrip("/")
        # What bpf_get_current_cgroup_id() gives is the inode of the cgroup's folder.
        return (self.cgroup / below).stat().st_ino

    def mount_trace(self) -> None:
        """See to it that tracefs is mounted in the node. Raises LabError."""
        where = "/sys/kernel/tracing"
        text = 'mountpoint -q "$1" || mount -t tracefs tracefs "$1"'
        docker.execute(self.node, ["sh", "-c", text, "sh", where])


def find(node: str) -> Place:
    """Find a node on this machine. Raises LabError where its processes are not to be seen from here."""
    if os.geteuid() != 0:
        raise LabError("only root sees the eBPF programs in this kernel", hint="sudo merlab up --lab kind")
    place = Place(node, docker.pid(node))
    with contextlib.suppress(OSError):
        if place.pid and (place.root / layout.MARK.lstrip("/")).exists():
            return place
    raise LabError(
        f"the processes of the node {node} are not on this machine: its Docker is elsewhere, or in a virtual machine",
        hint="run merlab where Docker runs; or --dataplane none",
    )


def cgroup_of(process: Path) -> str:
    """Give the cgroup2 path of a process, seen from here."""
    for line in (process / "cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    return ""


def is_outside(place: Place) -> bool:
    """Whether this process is outside the node's cgroup, and so out of reach of what is attached there."""
    node, own = (cgroup_of(Path("/proc") / str(pid)).rstrip("/") for pid in (place.pid, os.getpid()))
    return bool(node) and own != node and not own.startswith(f"{node}/")
