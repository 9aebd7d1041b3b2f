"""Where apps run: pods of one way, by the rules alone or by eBPF; and what proves that they went that way."""

from __future__ import annotations

import re
import subprocess
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.apps.cells import Row


_REDIRECT = re.compile(r"^\[(\d+):\d+\] -A ISTIO_REDIRECT ", re.MULTILINE)


class LabNotUpError(Exception):
    """A lab did not come up, or is not what it should be; the message says how."""


class Service(NamedTuple):
    """A service in front of one app: the pod behind it, and where the client dials it."""

    pod: str
    host: str
    port: int


@dataclass
class Witness:
    """What is counted around a run: packets of the client's ISTIO_REDIRECT rule, and what eBPF counts in the pods."""

    redirect_rule: int = 0
    #: Connections of apps to their sidecars that eBPF intercepted.
    intercepted: int = 0
    mesh_bytes: int = 0
    app_bytes: int = 0

    def add(self, counters: Mapping[str, int]) -> None:
        """Add the counters of one pod."""
        self.intercepted += counters["outbound_connects"]
        self.mesh_bytes += counters["mesh_redirected_bytes"]
        self.app_bytes += counters["outbound_redirected_bytes"] + counters["inbound_redirected_bytes"]

    def since(self, before: Witness) -> Witness:
        """Return what was added."""
        return Witness(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))


class Place(Protocol):
    """Pods with sidecars, all of one way: a client, and servers behind services."""

    #: "rules" or "ebpf".
    way: str
    #: For messages.
    name: str
    #: The pod of the clients.
    client: str
    #: Where an app may write, on this machine; one directory an app and way.
    rooms: Path
    #: Seconds within which the sidecars have written about a connection that has ended.
    logs_within: float

    def service(self, number: int) -> Service:
        """Return one of the services for apps."""

    def argv(self, pod: str, argv: Sequence[str]) -> list[str]:
        """Return the argv that runs `argv` as the app of a pod, in the process group of who starts it."""

    def bring(self, pod: str, room: Path) -> None:
        """Have a pod see such a directory under the same path."""

    def witness(self) -> Witness:
        """Read the counters."""

    def logged(self, port: int, server: str) -> tuple[int, int]:
        """Return how many lines both sidecars have written about a service: the client's, the server's."""


def redirect_rule(netns: str) -> int:
    """Return how many packets the rules have redirected to a sidecar for its app; each begins a connection."""
    argv = ["nsenter", f"--net={netns}", "iptables-nft-save", "-c", "-t", "nat"]
    saved = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=20).stdout
    return sum(int(found) for found in _REDIRECT.findall(saved))


def logged(port: int, client: Path, server: Path) -> tuple[int, int]:
    """Return how many lines the access logs of the client's and of the server's sidecar have about a service."""
    sent = client.read_text(errors="replace").count(f" outbound|{port}||")
    return sent, server.read_text(errors="replace").count(f" inbound|{port}||")


def unproved(rows: Sequence[Row], moved: Mapping[str, Witness]) -> list[str]:
    """Return what prevents the proof that each lab was what it is called, and that all apps were seen in it."""
    found = [f"{row.app} by {way}: {r.error}" for row in rows for way, r in row.results.items() if r.error]
    connections = {way: sum(row.results[way].connections for row in rows if way in row.results) for way in moved}
    rules, ebpf = moved["rules"], moved["ebpf"]
    if rules.redirect_rule < connections["rules"] or not connections["rules"]:
        found.append(f"by the rules: ISTIO_REDIRECT counted {rules.redirect_rule} of {connections['rules']}")
    if ebpf.redirect_rule:
        found.append(f"by eBPF: ISTIO_REDIRECT counted {ebpf.redirect_rule} connections")
    if ebpf.intercepted < connections["ebpf"] or not connections["ebpf"]:
        found.append(f"by eBPF: {ebpf.intercepted} of {connections['ebpf']} connections were intercepted")
    if not ebpf.mesh_bytes:
        found.append("by eBPF: no byte was redirected between sidecars")
    if rules.intercepted or rules.mesh_bytes:
        found.append("by the rules: connections were intercepted, or bytes redirected, by eBPF")
    return found
