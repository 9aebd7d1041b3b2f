"""What merlab's agent needs of this machine, checked before anything is created."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes.dataplanes.merlab import agent_image
from merbridge_lab.requirements import kernel, tools
from merbridge_lab.requirements.packages import Distribution
from merbridge_lab.requirements.requirement import FAIL, PASS, WARN, Requirement

if TYPE_CHECKING:
    from merbridge_lab.labs.kubernetes.provider import NodeImages


def requirements(image: str, images: NodeImages) -> list[Requirement]:
    """Check all requirements: those of the programs by doing, as the node runs on this kernel; and those of `bench`."""
    of_kernel = [kernel.version(), kernel.btf(Path("/")), kernel.lockdown(Path("/")), kernel.netns_cookie()]
    by_doing = [*kernel.programs(), *kernel.maps()] if os.geteuid() == 0 else []
    load = tools.generators(Distribution.read())
    return [privileges(os.geteuid()), *of_kernel, *by_doing, *of_image(image, images), *load]


def privileges(uid: int) -> Requirement:
    """Check for root: only root reads the pinned maps, and enters a pod from outside its node."""
    said = "root" if uid == 0 else f"user {uid}"
    needed = "root, to read its eBPF in the kernel (not needed with --dataplane none)"
    return Requirement("merlab.root", PASS if uid == 0 else FAIL, said, needed, None if uid == 0 else "sudo merlab up")


def of_image(ref: str, images: NodeImages) -> list[Requirement]:
    """Check whether this machine has its image; nothing if that cannot be determined.

    Step 0 finds out whether the node has it.
    """
    needed = "its image here"
    try:
        here = images.has(ref)
    except LabError:
        return []
    if here:
        return [Requirement("merlab.image", PASS, ref, needed)]
    return [Requirement("merlab.image", WARN, f"{ref} is not on this machine", needed, agent_image.BUILD)]
