"""What lasts for one batch only and gives no notice: settings and programs, read right before it and right after.

All settings are compared when a proof begins and when it ends, all programs as well; what is written meanwhile by way
of this machine's /proc, and what netlink tells of, passing.py hears. Here are those settings that decide where TCP
goes, whoever wrote them. Not seen is what is there neither before a batch nor after it.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from merbridge_lab.adapters import links, netns, sysctls
from merbridge_lab.drivers.embedded import layout, logs, passing, settings
from merbridge_lab.errors import NotHeldError
from merbridge_lab.evidence import UnreadError
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from merbridge_lab.drivers.embedded.interception import Interception
    from merbridge_lab.drivers.embedded.machine import Machine
    from merbridge_lab.drivers.embedded.pods import Pod

_WHOLE = (
    "ipv4/ip_forward", "ipv4/ip_nonlocal_bind", "ipv4/fwmark_reflect", "ipv4/tcp_fwmark_accept",
    "ipv4/tcp_l3mdev_accept", "ipv4/tcp_early_demux", "ipv4/tcp_migrate_req", "ipv4/ip_local_port_range",
)  # fmt: skip
_OF_LINKS = ("accept_local", "route_localnet", "src_valid_mark", "rp_filter", "arp_ignore")


@contextlib.contextmanager
def batch(machine: Machine, dataplane: Interception, *pods: Pod) -> Iterator[None]:
    """Let the block send a batch, on whose way these pods and the node are.

    Raises LabError where the lab's file system is full, before or after: then a record that is missing proves nothing.
    Raises NotHeldError, which names it, where something is on the way that should not be.
    """
    logs.bound(path for path in (machine.run / "pods").iterdir())
    logs.require_room(machine.run)
    _require(machine, dataplane, pods)
    yield
    _require(machine, dataplane, pods)
    logs.require_room(machine.run)


def _require(machine: Machine, dataplane: Interception, pods: tuple[Pod, ...]) -> None:
    spaces = {pod.spec.name: pod.netns for pod in pods if netns.is_pinned(pod.netns)}
    try:
        for name, path in {**spaces, layout.NODE: machine.netns(layout.NODE)}.items():
            own = [links.POD_END] if name in spaces else [pod.spec.veth for pod in pods]
            wanted = settings.wanted(own, forward=name not in spaces)
            names = [*_WHOLE, *(f"ipv4/conf/{each}/{word}" for each in ("all", "lo", *own) for word in _OF_LINKS)]
            for setting, value in netns.run_inside(path, partial(sysctls.read, names)).items():
                if value != wanted[setting]:
                    told = f"{setting} was {value or 'empty'}, not {wanted[setting]}"
                    raise NotHeldError(f"in {passing.where(name)} {told}, while requests were sent")
        groups = [pod.cgroup / kind for pod in pods for kind in pod.processes.kinds if (pod.cgroup / kind).is_dir()]
        if strangers := dataplane.strangers_now(groups, {**spaces, layout.NODE: machine.netns(layout.NODE)}):
            raise NotHeldError(f"{strangers[0]}, while requests were sent")
    except OSError as error:
        raise UnreadError(unread("what is on the way of requests", error)) from error
