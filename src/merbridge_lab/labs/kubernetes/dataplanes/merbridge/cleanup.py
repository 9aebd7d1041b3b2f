"""What a killed or removed Merbridge may leave on a node: programs on its cgroup, pins, CNI files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab import polling
from merbridge_lab.adapters.files import delete
from merbridge_lab.errors import LabError
from merbridge_lab.merbridge import kernel_objects

if TYPE_CHECKING:
    from collections.abc import Mapping

    from merbridge_lab.labs.kubernetes.dataplanes.node_view import NodeView

#: Where upstream's files are, below the node's root. Only releases that mount the node's /sys/fs leave pins.
_PINS = "sys/fs/bpf"
_PINNED = (
    *(kernel_objects.PODS, kernel_objects.SOCKETS, kernel_objects.WANTED, kernel_objects.CONTAINERS),
    *("cookie_original_dst", "process_ip", "mark_pod_ips_map"),
    *("connect", "sockops", "get_sockopts", "redir", "bind", "sendmsg", "recvmsg"),
)
#: How long the sockets of removed pods may hold a map, in seconds.
_CLOSED = 15.0
_FILES = ("opt/cni/bin/merbridge-cni", "etc/cni/net.d/*merbridge*")


def sweep(place: NodeView) -> list[str]:
    """Detach its programs from the node's cgroup and remove its pins, as upstream's cleanup does; return what it found.

    Upstream attaches without links. What its container left attached when it was killed stays until someone does this,
    and Merbridge refuses to start beside it. Raises LabError.
    """
    try:
        taken = [f"the program {hook}" for hook in kernel_objects.detach(place.cgroup)]
        pins = _pins(place)
        for pin in pins:
            delete(place.root / pin)
        return [*taken, *(f"the pin /{pin}" for pin in pins)]
    except OSError as error:
        raise LabError(
            f"programs on the cgroup of {place.node.name} cannot be detached: {error.strerror}", id="removal.failed"
        ) from error


def found(place: NodeView) -> list[str]:
    """List what is left of it: programs on the cgroup, pins, files. Raises LabError."""
    try:
        left = [f"the program {hook} on the node's cgroup" for hook in kernel_objects.look(place.cgroup).programs]
    except OSError as error:
        raise LabError(
            f"what is on the cgroup of {place.node.name} cannot be seen: {error.strerror}", id="reading.failed"
        ) from error
    left += [f"the pin /{pin}" for pin in _pins(place)]
    left += [f"the file /{each.relative_to(place.root)}" for pattern in _FILES for each in place.root.glob(pattern)]
    return left


def _pins(place: NodeView) -> list[str]:
    return [f"{_PINS}/{name}" for name in _PINNED if (place.root / _PINS / name).exists()]


def require_no_maps(maps: Mapping[str, int]) -> None:
    """Wait until maps are out of the kernel: a map of sockets stays until these are closed. Raises LabError."""
    left: list[str] = list(maps)

    def gone() -> bool:
        left[:] = kernel_objects.loaded(maps)
        return not left

    if maps and not polling.poll_until(gone, timeout=_CLOSED, every=0.3, awaiting="the maps of Merbridge to go"):
        raise LabError(
            f"{len(left)} maps of Merbridge are in the kernel {_CLOSED:.0f} s after it was removed: {', '.join(left)}",
            hint="bpftool map show",
            id="removal.failed",
        )


def require_none(place: NodeView) -> None:
    """Raise LabError if something is left of it; name what."""
    if left := found(place):
        raise LabError(
            f"Merbridge left something on the node {place.node.name}: {'; '.join(left)}",
            hint="merlab down",
            id="removal.failed",
        )
