"""Upstream's programs and maps in the kernel, found by where they are attached, not by their names.

Upstream pins them on a bpffs of its own container, so the node shows none of them; the kernel shows all. Needs root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_maps, bpf_syscall

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: What upstream attaches to the root cgroup that it sees, by the names of bpftool.
HOOKS = {
    "connect4": bpf_syscall.CGROUP_INET4_CONNECT,
    "sock_ops": bpf_syscall.CGROUP_SOCK_OPS,
    "getsockopt": bpf_syscall.CGROUP_GETSOCKOPT,
    "bind4": bpf_syscall.CGROUP_INET4_BIND,
    "sendmsg4": bpf_syscall.CGROUP_UDP4_SENDMSG,
    "recvmsg4": bpf_syscall.CGROUP_UDP4_RECVMSG,
}
#: Its programs, a line each: program, hook, and which rule it replaces.
ROLES: tuple[str, ...] = (
    "connect4 · connect() · instead of ISTIO_REDIRECT in nat OUTPUT",
    "getsockopt · SO_ORIGINAL_DST · instead of conntrack's memory",
    "sock_ops, sk_msg · sends and receives · no rule: payload from socket to socket",
)
#: Without these it intercepts nothing; which others exist depends on the release.
NEEDED = ("connect4", "sock_ops", "getsockopt")
#: The program that moves payload, attached to the map of sockets.
MOVER = "sk_msg"
PODS, SOCKETS, WANTED = "local_pod_ips", "sock_pair_map", "pair_original_dst"
CONTAINERS = "cgroup_info_map"

#: The prefix of the names of all of upstream's programs.
_PREFIX = "mb_"
# The kernel keeps 15 characters of a name.
_NAME = 15
# struct pair and struct origin_info of bpf/headers/helpers.h: addresses of 16 bytes since 0.7.2, of 4 before.
_WIDE, _NARROW = 36, 12
_WIDE_POD = 16


@dataclass(frozen=True)
class State:
    """What is attached: programs by hook, the maps that they use by (truncated) name, each as an id in the kernel."""

    programs: Mapping[str, int] = field(default_factory=dict)
    maps: Mapping[str, int] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """The required programs that are not attached."""
        return [hook for hook in NEEDED if hook not in self.programs]


@contextlib.contextmanager
def _opened(kind: str, number: int) -> Iterator[int]:
    descriptor = bpf_syscall.by_id(kind, number)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def look(cgroup: Path) -> State:
    """Read what is attached to a cgroup, and to the map of sockets that it uses. Raises OSError."""
    programs: dict[str, int] = {}
    maps: dict[str, int] = {}
    with _folder(cgroup) as target:
        for hook, kind in HOOKS.items():
            if found := bpf_syscall.attached_progs(target, kind):
                programs[hook] = found[0]
    for number in programs.values():
        with contextlib.suppress(FileNotFoundError), _opened("prog", number) as fd:
            for used in bpf_syscall.prog_info(fd).map_ids:
                with _opened("map", used) as map_fd:
                    maps[bpf_syscall.map_info(map_fd).name] = used
    if (sockets := maps.get(SOCKETS)) is not None:
        movers = _movers(sockets)
        if movers:
            programs[MOVER] = movers[0]
    return State(programs, maps)


def _movers(sockets: int) -> list[int]:
    """Find the program that is attached to the map of sockets. Raises OSError."""
    with _opened("map", sockets) as fd:
        try:
            return bpf_syscall.attached_progs(fd, bpf_syscall.SK_MSG_VERDICT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    # Kernels before 5.18 do not report what is attached to a map: it is the program of that kind that uses it.
    found = []
    for number in bpf_syscall.ids("prog"):
        with contextlib.suppress(FileNotFoundError), _opened("prog", number) as fd:
            info = bpf_syscall.prog_info(fd)
            if info.type == bpf_syscall.PROG_SK_MSG and sockets in info.map_ids:
                found.append(number)
    return found


def runs(state: State) -> dict[str, int]:
    """Return how often each program ran while statistics were on; skip those that are gone. Raises OSError."""
    counted = {}
    for hook, number in state.programs.items():
        with contextlib.suppress(FileNotFoundError), _opened("prog", number) as fd:
            counted[f"{hook}_runs"] = bpf_syscall.prog_info(fd).run_count
    return counted


def pods(state: State) -> list[str]:
    """List the addresses in local_pod_ips: the pods with a sidecar that upstream knows on this node."""
    number = state.maps.get(PODS[:_NAME])
    if number is None:
        return []
    with _opened("map", number) as fd:
        size = bpf_syscall.map_info(fd).key_size
        return sorted(read_pod(key) for key in bpf_maps.keys(fd, size))


def read_pod(key: bytes) -> str:
    """Parse a key of local_pod_ips: an IPv4 address, since 0.7.2 the last of four words."""
    return socket.inet_ntoa(key[-4:])


def entries(state: State, name: str) -> int | None:
    """Count the entries of a map; None if there is no such map."""
    number = state.maps.get(name[:_NAME])
    if number is None:
        return None
    with _opened("map", number) as fd:
        return len(bpf_maps.keys(fd, bpf_syscall.map_info(fd).key_size))


def wanted(state: State, source: str, dialled: str) -> str | None:
    """Return the original destination of a connection, as upstream stores it; None if it stores nothing.

    `source` and `dialled` are "ip:port", as they are after the rewrite. Raises OSError.
    """
    number = state.maps.get(WANTED[:_NAME])
    if number is None:
        return None
    with _opened("map", number) as fd:
        found = bpf_syscall.map_info(fd)
        keys = pairs(source, dialled, found.key_size)
        values = (bpf_maps.lookup(fd, key, found.value_size) for key in keys)
        return next((read_wanted(value) for value in values if value), None)


def outside_mesh(state: State, cgroups: Mapping[str, int]) -> list[str]:
    """Return those of `cgroups` (name → id) that upstream permanently marks as not in the mesh. Raises OSError."""
    number = state.maps.get(CONTAINERS[:_NAME])
    if number is None:
        return []
    with _opened("map", number) as fd:
        size = bpf_syscall.map_info(fd).value_size
        found = {name: bpf_maps.lookup(fd, struct.pack("=Q", each), size) for name, each in cgroups.items()}
    return [name for name, value in found.items() if value and not read_in_mesh(value)]


def read_in_mesh(value: bytes) -> bool:
    """Parse struct cgroup_info of bpf/headers/cgroup.h: the cgroup's id, then whether it is in the mesh."""
    return bool(struct.unpack_from("=8xI", value)[0])


def pairs(source: str, dialled: str, size: int) -> list[bytes]:
    """Return the possible keys of a connection in pair_original_dst; none for a size that no release has.

    Releases use words of four bytes and leave the first three of an IPv4 address empty; the main branch maps it into
    IPv6.
    """
    (sip, sport), (dip, dport) = (_split(place) for place in (source, dialled))
    if size == _NARROW:
        return [sip + dip + sport + dport]
    forms = (bytes(12), bytes(10) + b"\xff\xff") if size == _WIDE else ()
    return [form + sip + form + dip + sport + dport for form in forms]


def _split(place: str) -> tuple[bytes, bytes]:
    ip, _, port = place.rpartition(":")
    return socket.inet_aton(ip), struct.pack("!H", int(port))


def read_wanted(value: bytes) -> str:
    """Parse struct origin_info: the address and the port in network order; the flags follow the port."""
    if len(value) > _WIDE_POD:
        ip, port = struct.unpack_from("=12x4s4x2s", value)
    else:
        ip, port = struct.unpack_from("=4x4s2s", value)
    return f"{socket.inet_ntoa(ip)}:{struct.unpack('!H', port)[0]}"


def detach(cgroup: Path) -> list[str]:
    """Detach upstream's programs from a cgroup; return the hooks. Programs with other names stay. Raises OSError."""
    taken = []
    with _folder(cgroup) as target:
        for hook, kind in HOOKS.items():
            for number in bpf_syscall.attached_progs(target, kind):
                with _opened("prog", number) as fd:
                    if bpf_syscall.prog_info(fd).name.startswith(_PREFIX):
                        bpf_syscall.prog_detach(fd, target, kind)
                        taken.append(hook)
    return taken


def loaded(maps: Mapping[str, int]) -> list[str]:
    """Return those of `maps` (name → id) that are still in the kernel. Raises OSError."""
    found = []
    for name, number in maps.items():
        with contextlib.suppress(FileNotFoundError), _opened("map", number) as fd:
            if bpf_syscall.map_info(fd).name == name:
                found.append(name)
    return found
