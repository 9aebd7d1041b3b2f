"""What the maps tell of pods and connections: counters and pairs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters import bpf_maps
from merbridge_lab.dataplane import abi, garbage
from merbridge_lab.dataplane.endpoints import address
from merbridge_lab.dataplane.pins import u64
from merbridge_lab.errors import LabError
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from merbridge_lab.dataplane.pins import Pins


@dataclass(frozen=True)
class Pair:
    """A live connection through the dataplane; tuples are indexed by side: 0 dialled, 1 accepted."""

    id: int
    leg: str
    source: str
    destination: str
    original: str
    pods: tuple[str, str]
    redirected_messages: tuple[int, int]
    redirected_bytes: tuple[int, int]
    on_tcp: tuple[bool, bool]


@contextlib.contextmanager
def reading(pins: Pins) -> Iterator[None]:
    """Convert a failure to read into an error that reports it: unread is not the same as empty."""
    try:
        yield
    except OSError as error:
        raise LabError(
            str(unread(f"the dataplane below {pins.root}", error)), hint="merlab doctor", id="reading.failed"
        ) from error


def label(pod: Mapping[str, Any]) -> str:
    """Return what people call a pod: its name, after its namespace if it has one."""
    return f"{pod['namespace']}/{pod['name']}" if pod["namespace"] else str(pod["name"])


def pods(pins: Pins) -> dict[int, dict[str, Any]]:
    """Return the pods that are served, by cookie; none if nothing is attached, or by another version only.

    Raises LabError.
    """
    with reading(pins), contextlib.suppress(FileNotFoundError):
        if pins.readable:
            return pins.pods()
    return {}


def counters(pins: Pins) -> dict[int, dict[str, int]]:
    """Return every counter of every pod served, by cookie, summed over CPUs. Raises LabError."""
    layout, names = abi.layouts()["counters"], abi.counter_names()
    found: dict[int, dict[str, int]] = {}
    served = pods(pins)
    with reading(pins), contextlib.suppress(FileNotFoundError):
        if served:
            with pins.open_map("counters") as fd:
                for cookie in served:
                    raw = bpf_maps.per_cpu(fd, u64(cookie), layout.size) or ()
                    parts = [layout.unpack(each)["value"] for each in raw]
                    found[cookie] = {name: sum(part[at] for part in parts) for at, name in enumerate(names)}
    return found


def pairs(pins: Pins) -> list[Pair]:
    """Return the live connections that the dataplane carries. Raises LabError."""
    named = {cookie: label(pod) for cookie, pod in pods(pins).items()}
    with reading(pins), contextlib.suppress(FileNotFoundError):
        if pins.readable:
            with pins.open_map("pairs") as fd:
                return [_pair(raw, named) for raw in garbage.connections(fd).values()]
    return []


def _pair(raw: dict[str, Any], named: Mapping[int, str]) -> Pair:
    wire = raw["wire"]
    return Pair(
        id=raw["id"],
        leg=abi.legs()[raw["leg"]],
        source=f"{address(wire['src_ip4'])}:{wire['src_port']}",
        destination=f"{address(wire['dst_ip4'])}:{wire['dst_port']}",
        original=f"{address(raw['orig_ip4'])}:{raw['orig_port']}",
        pods=(named.get(raw["netns"][0], ""), named.get(raw["netns"][1], "")),
        redirected_messages=(raw["messages"][0], raw["messages"][1]),
        redirected_bytes=(raw["bytes"][0], raw["bytes"][1]),
        on_tcp=(bool(raw["tcp"][0]), bool(raw["tcp"][1])),
    )
