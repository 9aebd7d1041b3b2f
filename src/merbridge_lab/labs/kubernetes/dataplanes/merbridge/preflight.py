"""What upstream Merbridge needs of this machine and of the cluster, checked before anything is created."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import kernel_features
from merbridge_lab.adapters.image_reference import registry
from merbridge_lab.errors import LabError
from merbridge_lab.requirements.requirement import FAIL, PASS, WARN, Requirement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from merbridge_lab.labs.kubernetes.provider import NodeImages

_WITHOUT = "--dataplane none does without it"
#: Upstream's documentation says 5.7. Counting the runs of its programs needs 5.8, reading its trace lines as an event
#: 5.9.
_KERNEL = "5.9"
#: The consequence of native sidecars: upstream looks for istio-proxy among spec.containers, and expects more than one
#: there.
NATIVE = (
    "Merbridge looks for sidecars among a pod's containers, and native ones are init containers:"
    " its local_pod_ips stays empty"
)


def requirements(
    image: str, sidecars: str, images: NodeImages, others: Callable[[], Sequence[str]]
) -> list[Requirement]:
    """Check all requirements; `others` names each Merbridge in the cluster that merlab did not install."""
    return [
        privileges(os.geteuid()),
        architecture(platform.machine()),
        version(os.uname().release),
        cgroup2(Path("/proc/filesystems").read_text()),
        *of_image(image, images),
        kind_of_sidecars(sidecars),
        *alone(others),
    ]


def privileges(uid: int) -> Requirement:
    """Check for root: only root sees the programs, reads their maps, and enters a pod from outside its node."""
    said = "root" if uid == 0 else f"user {uid}"
    hint = None if uid == 0 else "sudo merlab up"
    return Requirement(
        "merbridge.root",
        PASS if uid == 0 else FAIL,
        said,
        "root, to see its eBPF in the kernel (not needed with --dataplane none)",
        hint,
    )


def architecture(machine: str) -> Requirement:
    """Check the architecture: its image exists for only one."""
    fits = machine == "x86_64"
    hint = None if fits else f"another machine; {_WITHOUT}"
    return Requirement(
        "merbridge.architecture", PASS if fits else FAIL, machine, "x86_64: its image has no other", hint
    )


def version(release: str) -> Requirement:
    """Compare the kernel's version with upstream's requirement."""
    fits = kernel_features.release(release) >= kernel_features.release(_KERNEL)
    hint = None if fits else f"boot Linux {_KERNEL} or newer; {_WITHOUT}"
    return Requirement("merbridge.kernel", PASS if fits else FAIL, release, f">= {_KERNEL}", hint)


def cgroup2(filesystems: str) -> Requirement:
    """Check whether the kernel has cgroup2: its programs are attached to one."""
    has = "cgroup2" in filesystems.split()
    hint = None if has else f"a kernel with cgroup2; {_WITHOUT}"
    return Requirement("merbridge.cgroup2", PASS if has else FAIL, "there" if has else "not there", "cgroup2", hint)


def of_image(ref: str, images: NodeImages) -> list[Requirement]:
    """Check whether this machine has its image; nothing if that cannot be determined.

    Step 0 finds out whether a registry has it.
    """
    needed = "its image here, or from its registry"
    try:
        here = images.has(ref)
    except LabError:
        return []
    if here:
        return [Requirement("merbridge.image", PASS, ref, needed)]
    found = f"{ref} is not on this machine: up looks for it at {registry(ref)}"
    return [Requirement("merbridge.image", WARN, found, needed, images.pull_command(ref))]


def kind_of_sidecars(sidecars: str) -> Requirement:
    """Describe the consequences of native sidecars."""
    needed = "classic, for acceleration between pods"
    if sidecars == "classic":
        return Requirement("merbridge.sidecars", PASS, sidecars, needed)
    return Requirement("merbridge.sidecars", WARN, f"{sidecars}: {NATIVE}", needed, "merlab up --sidecars classic")


def alone(others: Callable[[], Sequence[str]]) -> list[Requirement]:
    """Check for another Merbridge; nothing if the cluster does not answer."""
    try:
        found = others()
    except LabError:
        return []
    needed = "no other Merbridge"
    if not found:
        return [Requirement("merbridge.alone", PASS, "no other one", needed)]
    namespace, _, name = found[0].partition("/")
    hint = f"kubectl -n {namespace} delete daemonset {name}"
    return [
        Requirement(
            "merbridge.alone",
            FAIL,
            f"the DaemonSet {found[0]} is not merlab's; if you do not need it, delete it",
            needed,
            hint,
        )
    ]
