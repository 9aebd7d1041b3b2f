"""The loaded programs and the pinned links: what runs where, by the names of the pods."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from merbridge_lab.adapters import bpf_syscall
from merbridge_lab.dataplane import sockhash
from merbridge_lab.dataplane.map_readings import label
from merbridge_lab.dataplane.pins import LOOKUP, PROGRAMS, opened

if TYPE_CHECKING:
    from merbridge_lab.dataplane.pins import Pins


@dataclass(frozen=True)
class ProgramInfo:
    """A loaded program: its name and id in the kernel, its type, and a description of where it is attached."""

    name: str
    type: str
    id: int
    attached_to: str


class _Pinned(NamedTuple):
    """A pinned link: its hook, what people call its pod, and what the kernel says of it."""

    hook: str
    pod: str
    link: bpf_syscall.Link


def ours(pins: Pins) -> frozenset[int]:
    """Return the ids of the programs that the pinned links run. Raises OSError."""
    return frozenset(each.link.prog_id for each in _links(pins))


def links(pins: Pins) -> dict[str, bpf_syscall.Link]:
    """Return every pinned link by its name. Raises OSError."""
    return {f"{each.hook} of {each.pod}": each.link for each in _links(pins)}


def _links(pins: Pins) -> list[_Pinned]:
    named: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError):
        if pins.readable:
            named = {pod["id"]: label(pod) for pod in pins.pods().values()}
    found: list[_Pinned] = []
    for pin in pins.links():
        with contextlib.suppress(FileNotFoundError), opened(pin) as fd:
            uid = pin.parent.name
            found.append(_Pinned(pin.name, named.get(uid, uid), bpf_syscall.link_info(fd)))
    return found


def programs(pins: Pins) -> list[ProgramInfo]:
    """List the pinned programs with where they are attached. Raises OSError."""
    links = _links(pins)
    found: list[ProgramInfo] = []
    for name in PROGRAMS:
        with contextlib.suppress(FileNotFoundError), opened(pins.prog(name)) as fd:
            info = bpf_syscall.prog_info(fd)
            places = [
                f"netns of {each.pod}" if each.hook == LOOKUP.name else f"cgroup of {each.pod}"
                for each in links
                if each.link.prog_id == info.id and each.link.target
            ]
            if name == "sk_msg":
                places += _place_of_sk_msg(pins, fd)
            kind = bpf_syscall.PROG_TYPES.get(info.type, str(info.type))
            found.append(ProgramInfo(info.name, kind, info.id, ", ".join(places) or "nothing"))
    return found


def _place_of_sk_msg(pins: Pins, program: int) -> list[str]:
    with contextlib.suppress(FileNotFoundError), pins.open_map("peers") as peers:
        told = sockhash.redirects(program, peers)
        if told is None:
            return [f"map peers, as its counters show (not read: {sockhash.NOT_TOLD})"]
        return ["map peers"] if told else []
    return []
