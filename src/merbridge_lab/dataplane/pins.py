"""The directory of pins, on a bpffs of the lab's own: it keeps the dataplane alive after merlab has ended.

All functions that remove these pins are in this module (for upstream's Merbridge: its package's cleanup.py).

    links/<uid of a pod>/<hook>  maps/<name>  progs/<name>  readers/<slot>

Programs and maps exist once, links for each pod: pods are attached and detached one at a time.
Whoever reads the trace locks the directory of its slot (trace_ring.py).
`maps/stamp` is pinned last and unpinned first: without it, the pins are incomplete.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from merbridge_lab.adapters import bpf_maps, bpf_syscall
from merbridge_lab.adapters.files import delete, delete_folder
from merbridge_lab.dataplane import abi

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PREFIX = "merlab_"


class Hook(NamedTuple):
    """A place on a pod's cgroup, or in its network namespace: the name of its pin, its program, the attach type."""

    name: str
    program: str
    attach_type: int


#: In the order of attaching. connect comes last, so that nothing is intercepted before everything else is in place; it
#: is detached first. getsockopt comes first: an app must always learn the original destination of what was intercepted.
HOOKS = (
    Hook("getsockopt", "sockopt", bpf_syscall.CGROUP_GETSOCKOPT),
    Hook("sockops", "sockops", bpf_syscall.CGROUP_SOCK_OPS),
    Hook("getpeername6", "getpeer6", bpf_syscall.CGROUP_INET6_GETPEERNAME),
    Hook("getpeername4", "getpeer4", bpf_syscall.CGROUP_INET4_GETPEERNAME),
    Hook("connect6", "connect6", bpf_syscall.CGROUP_INET6_CONNECT),
    Hook("connect4", "connect4", bpf_syscall.CGROUP_INET4_CONNECT),
)

#: In the network namespace.
LOOKUP = Hook("sk_lookup", "lookup", bpf_syscall.SK_LOOKUP)

#: Every program: the name of its pin, and its type.
PROGRAMS = {
    "connect4": bpf_syscall.PROG_CGROUP_SOCK_ADDR,
    "connect6": bpf_syscall.PROG_CGROUP_SOCK_ADDR,
    "getpeer4": bpf_syscall.PROG_CGROUP_SOCK_ADDR,
    "getpeer6": bpf_syscall.PROG_CGROUP_SOCK_ADDR,
    "sockops": bpf_syscall.PROG_SOCK_OPS,
    "sk_msg": bpf_syscall.PROG_SK_MSG,
    "sockopt": bpf_syscall.PROG_CGROUP_SOCKOPT,
    "lookup": bpf_syscall.PROG_SK_LOOKUP,
    "unread": bpf_syscall.PROG_RAW_TRACEPOINT,
    "forget": bpf_syscall.PROG_RAW_TRACEPOINT,
    "release": bpf_syscall.PROG_RAW_TRACEPOINT,
}

MAPS = (
    "config", "kernel", "pods", "pod_ips", "ports", "ranges", "counters", "live", "pairs", "flows", "listeners",
    "peers", "readers", "lost", "rings", "stamp",
)  # fmt: skip

#: The directory of those who read the trace.
READERS = "readers"

_ZERO = bytes(4)


def number(raw: bytes) -> int:
    """Parse an integer as the kernel wrote it."""
    return int.from_bytes(raw, sys.byteorder)


def u32(value: int) -> bytes:
    """Encode an address as the kernel reads it."""
    return value.to_bytes(4, sys.byteorder)


def u64(value: int) -> bytes:
    """Encode a cookie as the kernel reads it."""
    return value.to_bytes(8, sys.byteorder)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open what is pinned at `path` for the duration of a block. Raises OSError."""
    fd = bpf_syscall.pinned(path)
    try:
        yield fd
    finally:
        os.close(fd)


def remove_pin(pin: Path) -> None:
    """Remove a pin; what it holds ends with its last other user. Succeed if there is none. Raises OSError."""
    delete(pin)


def unlink(pin: Path) -> None:
    """Detach a link, whoever else holds it, and remove its pin; succeed if there is none. Raises OSError."""
    with contextlib.suppress(OSError), opened(pin) as link:
        bpf_syscall.link_detach(link)
    remove_pin(pin)


class Pins:
    """The pins below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def link(self, uid: str, hook: str) -> Path:
        """Return where the link of a hook of a pod is pinned; names on a bpffs contain no dots."""
        return self.links_of(uid) / hook

    def links_of(self, uid: str) -> Path:
        """Return the directory of the links of a pod."""
        return self.root / "links" / uid

    def uids(self) -> list[str]:
        """Return the uids of the pods that have a directory of links."""
        place = self.root / "links"
        return sorted(each.name for each in place.iterdir() if each.is_dir()) if place.is_dir() else []

    def slots(self) -> list[Path]:
        """Return the directories of slots for those who read the trace."""
        place = self.root / READERS
        return sorted(place.iterdir()) if place.is_dir() else []

    def links(self) -> list[Path]:
        """Return the pin of every link, of any version's layout."""
        return sorted(each for each in (self.root / "links").rglob("*") if not each.is_dir())

    def prog(self, name: str) -> Path:
        """Return where a program is pinned."""
        return self.root / "progs" / name

    def map(self, name: str) -> Path:
        """Return where a map is pinned."""
        return self.root / "maps" / name

    @property
    def any(self) -> bool:
        """Report whether anything is pinned at all."""
        return any(path for path in self.root.rglob("*") if not path.is_dir()) if self.root.is_dir() else False

    def stamp(self) -> str | None:
        """Return the stamp of the pinned dataplane; None if the pins are incomplete.

        Raise OSError if it cannot be read.
        """
        raw = self._stamp()
        if raw is None:
            return None
        return raw[: abi.layouts()["stamp"].offset("programs")].rstrip(b"\0").decode(errors="replace") or None

    def tags(self) -> dict[str, str]:
        """Return the tag of each program, as this version loaded it: a digest of its instructions. Raises OSError."""
        layout = abi.layouts()["stamp"]
        raw = self._stamp() or b""
        told = layout.unpack(raw[: layout.size].ljust(layout.size, b"\0"))["programs"].decode(errors="replace")
        return dict(each.partition("=")[::2] for each in told.split())

    def _stamp(self) -> bytes | None:
        try:
            with opened(self.map("stamp")) as fd:
                return bpf_maps.lookup(
                    fd, _ZERO, bpf_syscall.map_info(fd).value_size
                )  # another version's may have another size
        except FileNotFoundError:
            return None

    @property
    def readable(self) -> bool:
        """Report whether the pins have the layouts that this version knows. Raise OSError if that cannot be read."""
        return self.stamp() == abi.stamp()

    @contextlib.contextmanager
    def open_map(self, name: str) -> Iterator[int]:
        """Open a map: by its pin, or through a program that uses it if the pin is gone. Raises FileNotFoundError."""
        try:
            fd = bpf_syscall.pinned(self.map(name))
        except FileNotFoundError:
            fd = self._map_of_program(PREFIX + name)
        try:
            yield fd
        finally:
            os.close(fd)

    def _map_of_program(self, kernel_name: str) -> int:
        for prog in PROGRAMS:
            with contextlib.suppress(FileNotFoundError), opened(self.prog(prog)) as program:
                for map_id in bpf_syscall.prog_info(program).map_ids:
                    fd = bpf_syscall.by_id("map", map_id)
                    if bpf_syscall.map_info(fd).name == kernel_name[:15]:
                        return fd
                    os.close(fd)
        raise FileNotFoundError(f"the map {kernel_name} is neither pinned nor used by a pinned program")

    # -- removing --------------------------------------------------------------------------------------------------

    def remove_objects(self) -> None:
        """Remove the pins of maps and programs, what an unfinished upgrade left, and the directories.

        Links are removed before: see detach.py. Raises OSError.
        """
        for name in reversed(MAPS):
            remove_pin(self.map(name))
        for name in PROGRAMS:
            remove_pin(self.prog(name))
        for rest in ("old", "next"):
            Pins(self.root / rest).clear()
        for uid in self.uids():
            remove_folder(self.links_of(uid))
        for slot in self.slots():
            remove_folder(slot)
        for folder in ("links", "maps", "progs", READERS):
            remove_folder(self.root / folder)
        with contextlib.suppress(OSError):  # the mount point itself, or not empty
            delete_folder(self.root)

    def clear(self) -> None:
        """Detach and remove everything that is pinned below the directory, of any version."""
        if not self.root.is_dir():
            return
        last = {"sockops": 1, "getsockopt": 2}  # they finish what was begun
        for pin in sorted(self.links(), key=lambda each: last.get(each.name, 0)):
            unlink(pin)
        for path in sorted(self.root.rglob("*"), reverse=True):
            with contextlib.suppress(OSError):
                (delete_folder if path.is_dir() else remove_pin)(path)
        with contextlib.suppress(OSError):
            delete_folder(self.root)

    # -- reading and writing ---------------------------------------------------------------------------------------

    def config(self) -> dict[str, int]:
        """Read the switches. Raises OSError."""
        with self.open_map("config") as fd:
            return abi.layouts()["config"].unpack(_whole(fd))

    def configure(self, **changes: int) -> None:
        """Set switches: redirect, debug, intercept. Raises OSError."""
        layout = abi.layouts()["config"]
        with self.open_map("config") as fd:
            raw = _whole(fd)
            values = layout.unpack(raw) | changes
            bpf_maps.update(fd, _ZERO, layout.pack(**values) + raw[layout.size :])

    def kernel(self) -> dict[str, int]:
        """Read what the programs are told about the kernel. Raises OSError."""
        layout = abi.layouts()["kernel"]
        with self.open_map("kernel") as fd:
            return layout.unpack(bpf_maps.lookup(fd, _ZERO, layout.size) or bytes(layout.size))

    def pods(self) -> dict[int, dict[str, Any]]:
        """Return the pods served, by the cookie of their network namespace. Raises OSError."""
        with self.open_map("pods") as fd:
            entries = bpf_maps.entries(fd, 8, abi.layouts()["pod"].size)
        return {number(key): dict(_named(raw)) for key, raw in entries.items()}

    def pod(self, cookie: int) -> dict[str, Any] | None:
        """Return the pod served whose network namespace has this cookie. Raises OSError."""
        with self.open_map("pods") as fd:
            raw = bpf_maps.lookup(fd, u64(cookie), abi.layouts()["pod"].size)
        return None if raw is None else dict(_named(raw))


def remove_folder(folder: Path) -> None:
    """Remove a directory of pins, including pins with names that this version does not know."""
    if not folder.is_dir():
        return
    for stray in folder.iterdir():
        if not stray.is_dir():
            remove_pin(stray)
    with contextlib.suppress(OSError):
        delete_folder(folder)


def _whole(config: int) -> bytes:
    """Read the whole configuration; in a later version it may be longer, but it begins in the same way."""
    size = bpf_syscall.map_info(config).value_size
    return (bpf_maps.lookup(config, _ZERO, size) or b"").ljust(abi.layouts()["config"].size, b"\0")


# All entries are read whenever one pod is served or forgotten: what that takes must not grow with the pods.
@functools.lru_cache(maxsize=1024)
def _named(raw: bytes) -> dict[str, Any]:
    pod = abi.layouts()["pod"].unpack(raw)
    return pod | {name: pod[name].decode(errors="replace") for name in ("id", "namespace", "name")}
