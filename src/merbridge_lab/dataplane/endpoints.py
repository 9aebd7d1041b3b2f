"""The endpoints that the dataplane serves: pods, each with its network namespace, its cgroup and its sidecar."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab.adapters import netns
from merbridge_lab.dataplane import abi
from merbridge_lab.dataplane.legs import ALL_LEGS, Legs
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
    legs: Legs = ALL_LEGS

    @property
    def ip4(self) -> int:
        """Return the address as the kernel side stores it."""
        return packed(self.ip)


def pod_entry(endpoint: Endpoint) -> bytes:
    """Return what the map `pods` holds for an endpoint."""
    legs, known = endpoint.legs, abi.constants()
    return abi.layouts()["pod"].pack(
        ip4=endpoint.ip4,
        flags=legs.out_of_app * known["POD_FROM_APP"] | legs.into_app * known["POD_INTO_APP"],
        uid=endpoint.sidecar.uid if endpoint.sidecar else SIDECAR_UID,
        gid=endpoint.sidecar.gid if endpoint.sidecar else SIDECAR_UID,
        name=endpoint.name.encode(),
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
