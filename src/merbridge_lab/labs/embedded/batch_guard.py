"""Settings and programs that could exist for one batch only and give no notice; read once its requests are answered.

A proof compares all settings and all programs when it begins and when it ends. In between, namespace_watch.py reports
what is written through /proc, and what netlink reports. This module reads the settings that decide the path of TCP,
whoever wrote them. It misses a change that is undone before the batch's last answer arrives.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from merbridge_lab.adapters import links, netns, sysctls
from merbridge_lab.dataplane import attached_programs
from merbridge_lab.errors import ClaimFailedError
from merbridge_lab.evidence import UnreadError
from merbridge_lab.labs.embedded import logs, namespace_watch, sysctl_drift, topology
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from merbridge_lab.labs.embedded.dataplane import EmbeddedDataplane
    from merbridge_lab.labs.embedded.host import Machine
    from merbridge_lab.labs.embedded.mesh import Pod

_WHOLE = (
    "ipv4/ip_forward", "ipv4/ip_nonlocal_bind", "ipv4/fwmark_reflect", "ipv4/tcp_fwmark_accept",
    "ipv4/tcp_l3mdev_accept", "ipv4/tcp_early_demux", "ipv4/tcp_migrate_req", "ipv4/ip_local_port_range",
)  # fmt: skip
_OF_LINKS = ("accept_local", "route_localnet", "src_valid_mark", "rp_filter", "arp_ignore")


@contextlib.contextmanager
def batch(machine: Machine, dataplane: EmbeddedDataplane, *pods: Pod) -> Iterator[None]:
    """Guard the block, which sends a batch through these pods and the node.

    Raise LabError if the lab's file system is full, before or after: then a missing record proves nothing. Raise
    ClaimFailedError, which names it, if something was on the path that should not be.
    """
    machine.require_own()
    logs.bound(path for path in (machine.run / "pods").iterdir())
    logs.require_room(machine.run)
    yield
    _require(machine, dataplane, pods)
    logs.require_room(machine.run)
    machine.require_own()


def _require(machine: Machine, dataplane: EmbeddedDataplane, pods: tuple[Pod, ...]) -> None:
    spaces = {pod.spec.name: pod.netns for pod in pods if netns.is_pinned(pod.netns)}
    spaces[topology.NODE] = machine.netns(topology.NODE)
    groups = [pod.cgroup / kind for pod in pods for kind in pod.processes.kinds if (pod.cgroup / kind).is_dir()]
    try:
        ours = dataplane.ours()
        found = [told for group in groups for told in attached_programs.on_cgroup(ours, group)]
        found += attached_programs.on_netfilter(spaces)
        for name, path in spaces.items():
            own = [pod.spec.veth for pod in pods] if name == topology.NODE else [links.POD_END]
            found += netns.run_inside(path, partial(_in_namespace, ours, name, path, own))
    except OSError as error:
        raise UnreadError(unread("the path of the requests", error)) from error
    if found:
        raise ClaimFailedError(f"{found[0]}, while requests were sent")


def _in_namespace(ours: frozenset[int], name: str, path: Path, own: Sequence[str]) -> list[str]:
    """Describe what should not be in the calling thread's network namespace, which is a pod's or the node's."""
    wanted = sysctl_drift.wanted(own, forward=name == topology.NODE)
    names = [*_WHOLE, *(f"ipv4/conf/{each}/{word}" for each in ("all", "lo", *own) for word in _OF_LINKS)]
    return attached_programs.in_namespace(ours, name, path) + [
        f"in {namespace_watch.where(name)} {setting} was {value or 'empty'}, not {wanted[setting]}"
        for setting, value in sysctls.read(names).items()
        if value != wanted[setting]
    ]
