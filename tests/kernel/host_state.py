"""A lab for tests, and the state of the host, which must be unchanged when a lab is gone."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import cgroup, mounts, procfs
from merbridge_lab.labs.embedded import topology
from merbridge_lab.labs.embedded.host import Machine
from merbridge_lab.labs.embedded.mesh import Mesh, Pod
from merbridge_lab.labs.embedded.node import Node

if TYPE_CHECKING:
    from collections.abc import Iterator

_ETC = ("hosts", "resolv.conf", "nsswitch.conf")
#: Values that change by themselves, and names that come with autoloaded modules.
_MOVING = ("/netfilter/", "nf_conntrack")


def _is_another_lab(text: str, name: str) -> bool:
    return "merlab" in text and name not in text


def _output(*argv: str) -> list[str]:
    lines = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
    return [line for line in lines if not line.startswith("#")]


def _sysctls() -> dict[str, str]:
    found = {}
    for folder, _names, files in os.walk("/proc/sys/net"):
        for file in files:
            path = Path(folder, file)
            if not any(part in str(path) for part in _MOVING):
                try:
                    found[str(path)] = path.read_text()
                except OSError:
                    continue
    return found


def _processes(name: str) -> set[str]:
    """Return processes of the lab `name`, found by command line, by cgroup, or by a namespace that is not ours."""
    found = set()
    own = procfs.look(os.getpid())
    others = {
        pin.stat().st_ino for pin in Path("/run").glob("merlab*/netns/*") if pin.parts[2] != name and pin.exists()
    }
    for entry in Path("/proc").iterdir():
        try:
            seen = procfs.look(int(entry.name)) if entry.name.isdigit() else None
            group = (entry / "cgroup").read_text() if seen else ""
        except OSError:
            continue  # gone, or one that even root may not read
        if seen is None:
            continue
        elsewhere = (seen.netns, seen.mntns) != (own.netns, own.mntns) and seen.netns not in others
        if name in seen.command or name in group or (elsewhere and not _is_another_lab(group + seen.command, name)):
            found.add(seen.command)
    return found


def state(name: str) -> dict[str, object]:
    """Return the state of the host, without what belongs to a lab of another name than `name`.

    /run/mount is also left out: it is the scratch directory of mount(8), which a person uses, and merlab does not.
    """
    root = cgroup.find_root(Path("/nowhere"))
    groups = [str(each) for each in cgroup.subtree(root)] if root else []
    table = [str((m.target, m.root, m.fstype, m.source)) for m in mounts.table()]
    return {
        "mounts": [each for each in table if not _is_another_lab(each, name)],
        "cgroups": sorted(each for each in groups if not _is_another_lab(each, name)),
        "run": sorted(
            each.name
            for each in Path("/run").iterdir()
            if each.name != "mount" and not _is_another_lab(each.name, name)
        ),
        "links": sorted(each.name for each in Path("/sys/class/net").iterdir()),
        "nft": _output("nft", "list", "ruleset"),
        "rules": _output("iptables-nft-save") + _output("iptables-legacy-save"),
        "sysctls": _sysctls(),
        "processes": _processes(name),
        "etc": {each: (Path("/etc", each).read_text(), Path("/etc", each).stat().st_mtime_ns) for each in _ETC},
    }


NAME = "merlab-substrate"
READY = 20
HELLO = "http://helloworld:5000/hello"


class Lab:
    def __init__(self, name: str = NAME, backend: str = "nft") -> None:
        self.machine = Machine(name)
        self.node = Node(self.machine, backend)
        self.mesh = Mesh(self.machine, self.node, topology.pods(backend))
        self.sleep, self.v1, self.v2 = self.mesh.pods

    def ensure(self) -> None:
        self.machine.ensure()
        self.node.ensure()
        self.mesh.ensure()
        self.mesh.wait_ready(READY)

    def problems(self) -> list[str]:
        return self.machine.problems() + self.node.problems() + self.mesh.problems()


@contextlib.contextmanager
def standing_mesh(name: str = NAME) -> Iterator[Lab]:
    """Create node and mesh of a lab called `name`; they are removed after the block."""
    found = Lab(name)
    found.machine.remove(10)
    try:
        found.ensure()
        yield found
    finally:
        found.machine.remove(10)


def as_app(pod: Pod, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(pod.argv_as_app(argv), capture_output=True, text=True, timeout=30, check=False)


def curl(pod: Pod, *extra: str, url: str = HELLO) -> subprocess.CompletedProcess[str]:
    return as_app(pod, "curl", "-s", "--max-time", "10", *extra, url)
