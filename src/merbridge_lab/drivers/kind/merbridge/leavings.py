"""What a Merbridge that was killed, or removed, may leave on a node: programs on its cgroup, pins, CNI files."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab.dataplane.merbridge import kernel
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from merbridge_lab.drivers.kind.merbridge.place import Place

#: Where upstream's files are, below the node's root: pins only of the releases that mount the node's /sys/fs.
_PINS = "sys/fs/bpf"
_PINNED = (kernel.PODS, kernel.SOCKETS, kernel.WANTED, "cookie_original_dst", "connect", "sockops", "redir")
_FILES = ("opt/cni/bin/merbridge-cni", "etc/cni/net.d/*merbridge*")


def sweep(place: Place) -> list[str]:
    """Take off the node's cgroup what is attached there, as upstream's own clean-up does; name the hooks.

    Upstream attaches without links: what its container left attached when it was killed stays until someone does this,
    and it refuses to start beside it. Raises LabError.
    """
    try:
        return kernel.detach(place.cgroup)
    except OSError as error:
        raise LabError(f"programs on the cgroup of {place.node} cannot be taken off: {error.strerror}") from error


def found(place: Place) -> list[str]:
    """Name what is left of it: programs on the cgroup, pins, files."""
    left = []
    with contextlib.suppress(OSError):
        left += [f"the program {hook} on the node's cgroup" for hook in kernel.look(place.cgroup).programs]
    left += [f"the pin /{_PINS}/{name}" for name in _PINNED if (place.root / _PINS / name).exists()]
    left += [f"the file /{each.relative_to(place.root)}" for pattern in _FILES for each in place.root.glob(pattern)]
    return left


def require_none(place: Place) -> None:
    """Raise LabError naming what is left of it."""
    if left := found(place):
        raise LabError(
            f"Merbridge left something on the node {place.node}: {'; '.join(left)}",
            hint="merlab down removes the node with all that is on it",
        )
