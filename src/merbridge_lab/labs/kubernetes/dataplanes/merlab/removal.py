"""After a removal: nothing of the agent is pinned on the node, and its programs and maps are out of the kernel."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from merbridge_lab import polling
from merbridge_lab.adapters import bpf_syscall
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes.dataplanes.merlab import node_maps
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from merbridge_lab.labs.kubernetes.dataplanes.node_view import NodeView

#: How long the sockets of removed pods may hold programs and maps, in seconds.
_CLOSED = 15.0


@dataclass(frozen=True)
class Loaded:
    """The ids of programs, and of the maps that they use."""

    programs: frozenset[int] = field(default_factory=frozenset)
    maps: frozenset[int] = field(default_factory=frozenset)


def loaded(place: NodeView) -> Loaded:
    """Return what is pinned on the node now. Raises LabError."""
    programs = frozenset(each.id for each in node_maps.reader(place).programs())
    maps: set[int] = set()
    try:
        for number in programs:
            descriptor = bpf_syscall.by_id("prog", number)
            try:
                maps.update(bpf_syscall.prog_info(descriptor).map_ids)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise LabError(
            str(unread("the programs of merlab's agent", error)), hint="merlab status", id="reading.failed"
        ) from error
    return Loaded(programs, frozenset(maps))


def require_none(place: NodeView) -> None:
    """Raise LabError if something is pinned on the node."""
    if node_maps.are_there(place):
        raise LabError(
            f"merlab's agent left pins on the node {place.node.name}: {node_maps.place(place)}",
            hint="merlab down",
            id="removal.failed",
        )


def require_unloaded(known: Loaded) -> None:
    """Wait until programs and maps are out of the kernel: sockets that still use them end first. Raises LabError."""
    left: list[str] = []

    def gone() -> bool:
        left[:] = [f"program {each}" for each in sorted(known.programs & set(bpf_syscall.ids("prog")))]
        left.extend(f"map {each}" for each in sorted(known.maps & set(bpf_syscall.ids("map"))))
        return not left

    if not known.programs or polling.poll_until(
        gone, timeout=_CLOSED, every=0.3, awaiting="the programs of merlab's agent to be unloaded"
    ):
        return
    raise LabError(
        f"{len(left)} objects of merlab's agent are in the kernel {_CLOSED:.0f} s after it was removed:"
        f" {', '.join(left)}",
        hint="bpftool map show",
        id="removal.failed",
    )
