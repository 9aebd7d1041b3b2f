"""What upstream Merbridge needs of this machine and of the cluster, looked at before anything is made."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import docker, kernel_features
from merbridge_lab.errors import LabError
from merbridge_lab.requirements.requirement import FAIL, PASS, WARN, Requirement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WITHOUT = "--dataplane none does without it"
#: Upstream's documentation says 5.7; counting how often its programs run takes 5.8, its trace lines as an event 5.9.
_KERNEL = "5.9"
#: What native sidecars cost: upstream looks for istio-proxy among spec.containers, and wants more than one there.
NATIVE = (
    "Merbridge looks for sidecars among a pod's containers, and native ones are init containers:"
    " its local_pod_ips stays empty"
)


def requirements(image: str, sidecars: str, others: Callable[[], Sequence[str]]) -> list[Requirement]:
    """Look at all; `others` names each Merbridge in the cluster that merlab did not put in."""
    return [
        privileges(os.geteuid()),
        architecture(platform.machine()),
        version(os.uname().release),
        cgroup2(Path("/proc/filesystems").read_text()),
        *of_image(image),
        kind_of_sidecars(sidecars),
        *alone(others),
    ]


def privileges(uid: int) -> Requirement:
    """Only root sees the programs, reads their maps, and enters a pod from outside its node."""
    said = "root" if uid == 0 else f"user {uid}"
    hint = None if uid == 0 else "sudo merlab up --lab kind"
    return Requirement(
        "merbridge.root",
        PASS if uid == 0 else FAIL,
        said,
        "root, to see its eBPF in the kernel (--dataplane none does without)",
        hint,
    )


def architecture(machine: str) -> Requirement:
    """Its image is for one architecture alone."""
    fits = machine == "x86_64"
    hint = None if fits else f"another machine; {_WITHOUT}"
    return Requirement(
        "merbridge.architecture", PASS if fits else FAIL, machine, "x86_64: its image has no other", hint
    )


def version(release: str) -> Requirement:
    """Compare the kernel's version with what upstream says."""
    fits = kernel_features.release(release) >= kernel_features.release(_KERNEL)
    hint = None if fits else f"boot Linux {_KERNEL} or newer; {_WITHOUT}"
    return Requirement("merbridge.kernel", PASS if fits else FAIL, release, f">= {_KERNEL}", hint)


def cgroup2(filesystems: str) -> Requirement:
    """Look whether the kernel has cgroup2: its programs are attached to one."""
    has = "cgroup2" in filesystems.split()
    hint = None if has else f"a kernel with cgroup2; {_WITHOUT}"
    return Requirement("merbridge.cgroup2", PASS if has else FAIL, "there" if has else "not there", "cgroup2", hint)


def of_image(ref: str) -> list[Requirement]:
    """Say whether Docker has its image; whether a registry would give it, step 0 finds out. Nothing without Docker."""
    needed = "its image here, or from its registry"
    try:
        here = docker.has_image(ref)
    except LabError:
        return []
    if here:
        return [Requirement("merbridge.image", PASS, ref, needed)]
    found = f"{ref} is not on this machine: up looks for it at {docker.registry(ref)}"
    return [Requirement("merbridge.image", WARN, found, needed, f"docker pull {ref}")]


def kind_of_sidecars(sidecars: str) -> Requirement:
    """Say what native sidecars cost."""
    needed = "classic, for acceleration between pods"
    if sidecars == "classic":
        return Requirement("merbridge.sidecars", PASS, sidecars, needed)
    return Requirement("merbridge.sidecars", WARN, f"{sidecars}: {NATIVE}", needed, "merlab up --sidecars classic")


def alone(others: Callable[[], Sequence[str]]) -> list[Requirement]:
    """Look for another Merbridge; nothing where the cluster does not tell."""
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
