"""The endpoints that the dataplane serves: pods, each with its network namespace, its cgroup and its sidecar."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from merbridge_lab.adapters import netns
from merbridge_lab.dataplane import abi
from merbridge_lab.errors import LabError
from merbridge_lab.istio_facts import SIDECAR_UID

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Sidecar:
    """The sidecar of an endpoint: its process, and the user and group that it runs as, as the node sees them."""

    pid: int
    uid: int
    gid: int = SIDECAR_UID


class AppLegs(NamedTuple):
    """Whether eBPF may move what an app sends to its own sidecar, and what it receives from it.

    Between sidecars it always may. See docs/adr/0035-legs-by-reader.md.
    """

    sends: bool
    receives: bool


class Legs(str, Enum):
    """Whose messages eBPF moves: a profile.

    SAFE is for any app: a socket of an app is left to TCP where the kernel makes it differ from TCP's. ALL is for apps
    that are known to work with redirected messages, such as the embedded lab's own.
    """

    SAFE = "safe"
    ALL = "all"

    def of_apps(self) -> AppLegs:
        """Return what this profile means on this kernel."""
        return AppLegs(sends=self is Legs.ALL, receives=self is Legs.ALL)


@dataclass(frozen=True)
class Endpoint:
    """A pod to serve.

    `namespace` is that of Kubernetes; "" where there is none. `name` is the pod's, unique in it. `uid` identifies this
    very pod: one that is created again under the same name has another; "" while the pod does not exist. `ip` is its
    IPv4 address. `netns` is a file that represents its network namespace. `cgroup` is the directory of the cgroup that
    holds all its processes. `sidecar` is None if it has none, or if it does not run.
    """

    namespace: str
    name: str
    uid: str
    ip: str
    netns: Path
    cgroup: Path
    sidecar: Sidecar | None = None
    legs: Legs = Legs.ALL

    @property
    def ip4(self) -> int:
        """Return the address as the kernel side stores it."""
        return packed(self.ip)


def pod_entry(endpoint: Endpoint) -> bytes:
    """Return what the map `pods` holds for an endpoint."""
    app, known = endpoint.legs.of_apps(), abi.constants()
    return abi.layouts()["pod"].pack(
        ip4=endpoint.ip4,
        flags=app.sends * known["POD_FROM_APP"] | app.receives * known["POD_INTO_APP"],
        uid=endpoint.sidecar.uid if endpoint.sidecar else SIDECAR_UID,
        gid=endpoint.sidecar.gid if endpoint.sidecar else SIDECAR_UID,
        name=endpoint.name.encode(),
    )


def profile_of(entry: Mapping[str, int]) -> Legs:
    """Return the profile that an entry of the map `pods` was made with."""
    return Legs.ALL if entry["flags"] & abi.constants()["POD_INTO_APP"] else Legs.SAFE


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
