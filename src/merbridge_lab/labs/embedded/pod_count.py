"""How many pods the lab has: asked of `up`, kept in the run directory before the first of them is made.

So a command after a `kill -9` knows how many there were to be, not only how many came to be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters.files import write_atomic
from merbridge_lab.labs.embedded import topology
from merbridge_lab.text import read_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.labs.embedded.host import Machine
    from merbridge_lab.labs.embedded.topology import PodSpec

FILE = "pods.count"


def kept(machine: Machine) -> int:
    """Return how many pods the lab was made with; three if nothing that makes sense is kept, as in older labs."""
    try:
        count = int(read_text(machine.run / FILE))
    except (OSError, ValueError):
        return topology.FEWEST_PODS
    return count if topology.FEWEST_PODS <= count <= topology.MOST_PODS else topology.FEWEST_PODS


def problems(machine: Machine, count: int) -> list[str]:
    """Report that the lab was made with another number of pods than it shall have."""
    if (before := kept(machine)) == count:
        return []
    return [f"the lab has {before} pods, not {count} ({machine.run / FILE})"]


def keep(machine: Machine, count: int) -> None:
    """Keep the number, if it is another one. Raises OSError."""
    if kept(machine) != count:
        write_atomic(machine.run / FILE, f"{count}\n")


def surplus(machine: Machine, count: int) -> Sequence[PodSpec]:
    """Return the replicas of which anything is there although the lab has fewer pods."""
    folders = (machine.run / "netns", machine.run / "mnt", machine.run / "pods", machine.mesh_cgroup)
    there = {each.name for folder in folders if folder.is_dir() for each in folder.iterdir()}
    return [spec for spec in topology.ALL_PODS[count:] if spec.name in there]
