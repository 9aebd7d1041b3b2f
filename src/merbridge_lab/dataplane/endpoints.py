"""The endpoints that the dataplane serves: pods, each with its network namespace, its cgroup and its sidecar."""

from __future__ import annotations

import re
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters import netns
from merbridge_lab.dataplane import abi, interception_lists
from merbridge_lab.dataplane.istio_annotations import Interception
from merbridge_lab.dataplane.legs import ALL_LEGS, Legs
from merbridge_lab.errors import LabError
from merbridge_lab.text import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


#: What /proc/self/uid_map says where users have the numbers that they have on the node.
_IDENTITY = ["0", "0", "4294967295"]


@dataclass(frozen=True)
class Sidecar:
    """The sidecar of an endpoint: its process, and the user and group that it runs as, as the node sees them."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True)
class Endpoint:
    """A pod to serve.

    `namespace` is that of Kubernetes; "" where there is none. `name` is the pod's, unique in it. `uid` identifies this
    very pod: one that is created again under the same name has another; "" while the pod does not exist. `ip` is its
    IPv4 address. `netns` is a file that represents its network namespace. `cgroup` is the directory of the cgroup that
    holds all its processes. `sidecar` is None if it has none, or if it does not run: what the pod dials is left to the
    rules until it is known. `left_to_rules` is why eBPF does not serve the pod at all; "" if it does.
    """

    namespace: str
    name: str
    uid: str
    ip: str
    netns: Path
    cgroup: Path
    sidecar: Sidecar | None = None
    legs: Legs = ALL_LEGS
    interception: Interception = field(default_factory=Interception)
    left_to_rules: str = ""

    @property
    def ip4(self) -> int:
        """Return the address as the kernel side stores it."""
        return packed(self.ip)


def pod_entry(endpoint: Endpoint) -> bytes:
    """Return what the map `pods` holds for an endpoint. Raise OSError if its cgroup is gone."""
    known = abi.constants()
    return abi.layouts()["pod"].pack(
        cgroup=endpoint.cgroup.stat().st_ino,
        ip4=endpoint.ip4,
        flags=pod_flags(endpoint),
        uid=endpoint.sidecar.uid if endpoint.sidecar else known["NOBODY"],
        gid=endpoint.sidecar.gid if endpoint.sidecar else known["NOBODY"],
        id=endpoint.uid.encode(),
        namespace=endpoint.namespace.encode(),
        name=endpoint.name.encode(),
    )


def pod_flags(endpoint: Endpoint) -> int:
    """Return the flags that the map `pods` holds for an endpoint."""
    legs, known = endpoint.legs, abi.constants()
    moved = legs.out_of_app * known["POD_FROM_APP"] | legs.into_app * known["POD_INTO_APP"]
    return moved | interception_lists.flags(endpoint.interception)


def served(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Return those that eBPF serves."""
    return [endpoint for endpoint in endpoints if not endpoint.left_to_rules]


def sidecar_of(pid: int) -> Sidecar:
    """Read as which user and group a sidecar's process runs, as the node sees them: in a user namespace, too.

    Raise LabError, with the reason, if they cannot be read or are not one each: then no socket of the process can be
    told from the app's, and its own dials could be taken for the app's, in an endless loop.
    """
    ids = {}
    try:
        own = read_text(Path("/proc/self/uid_map")).split()
        status = read_text(Path(f"/proc/{pid}/status"))
    except OSError as error:
        raise _unknown(pid, f"the process cannot be read: {error.strerror or error}") from error
    if own[:3] != _IDENTITY:
        raise _unknown(pid, "merlab runs in a user namespace, where the node's users have other numbers")
    for kind in ("Uid", "Gid"):
        found = re.search(rf"^{kind}:((?:\s+\d+){{4}})$", status, re.MULTILINE)
        numbers = set(found[1].split()) if found else set()
        if len(numbers) != 1:
            raise _unknown(pid, f"its {kind.lower()}s are {', '.join(sorted(numbers)) or 'not in its status'}, not one")
        ids[kind] = int(numbers.pop())
    return Sidecar(pid, ids["Uid"], ids["Gid"])


def _unknown(pid: int, why: str) -> LabError:
    return LabError(
        f"the user of the sidecar (pid {pid}) is not known: {why}",
        hint=f"grep -E '^[UG]id' /proc/{pid}/status",
        id="reading.failed",
    )


def legs_of(entry: Mapping[str, int]) -> Legs:
    """Return the legs that an entry of the map `pods` was made with."""
    flags, known = entry["flags"], abi.constants()
    out_of_app, into_app = bool(flags & known["POD_FROM_APP"]), bool(flags & known["POD_INTO_APP"])
    if into_app:
        return ALL_LEGS
    what = "what they send is redirected, what they read comes by TCP" if out_of_app else "TCP only"
    return Legs(True, out_of_app, into_app, f"app sockets: {what}, as the profile safe has it on this kernel")


def packed(ip: str) -> int:
    """Return an address as the kernel side stores it: 4 bytes in network order, read as a native integer."""
    return int(struct.unpack("=I", socket.inet_aton(ip))[0])


def address(ip4: int) -> str:
    """Return as text an address that the kernel side stores."""
    return socket.inet_ntoa(struct.pack("=I", ip4))


def netns_cookie(path: Path) -> int:
    """Return the cookie of a network namespace: unique since boot, unlike its inode number. Raises LabError."""
    try:
        return netns.cookie(path)
    except OSError as error:
        raise LabError(
            f"the network namespace {path} cannot be entered: {error}", hint="merlab status", id="dataplane.failed"
        ) from error
