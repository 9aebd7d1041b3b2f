"""The kernel: how it is built and what it allows."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab import shortage
from merbridge_lab.adapters import bpf_features, bpf_syscall, cgroup, netns, tcp_bytes
from merbridge_lab.adapters import kernel_features as asked
from merbridge_lab.adapters.command import run
from merbridge_lab.errors import LabError, ShortageError
from merbridge_lab.requirements import privileges
from merbridge_lab.requirements.requirement import FAIL, PASS, WARN, Requirement, unless_found
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable

#: The purpose of each kind of program, for the reader of `merlab doctor`.
_PURPOSE = {
    "bpf.connect4": "redirects what an app dials",
    "bpf.connect6": "the same for IPv6 sockets",
    "bpf.getpeername4": "shows the app the peer it dialled",
    "bpf.getsockopt": "answers SO_ORIGINAL_DST",
    "bpf.sock_ops": "sees connections being established",
    "bpf.sk_msg": "moves bytes socket to socket",
    "bpf.sk_lookup": "steers inbound connections",
    "bpf.raw_tracepoint": "counts what a socket has not read yet",
    "bpf.sockhash": "map of sockets",
    "bpf.sk_storage": "map of what belongs to a socket",
    "bpf.percpu_hash": "map of counters",
    "bpf.ring_buffer": "the dataplane's trace",
}


def _lacking(name: str, found: str, needed: str, error: OSError | None = None) -> Requirement:
    """Build the failure of a feature in the table, with the kernel version that has it."""
    feature = asked.FEATURES[name]
    if error is not None and error.errno in {errno.EPERM, errno.EACCES}:
        return Requirement(name, FAIL, found, needed, privileges.remedy())
    return Requirement(name, FAIL, found, needed, f"use Linux {feature.since} or newer with {feature.config}")


def version() -> Requirement:
    """Check the version, which counts for less than the features: vendors backport those to older kernels."""
    return judge_version(os.uname().release, newest_feature=_loads("bpf.sock_ops"))


def _loads(name: str) -> bool:
    with contextlib.suppress(OSError):
        bpf_features.load(name, cookie=True)
        return True
    return False


def judge_version(release: str, *, newest_feature: bool) -> Requirement:
    """Assess the output of `uname -r`; it is known whether the newest required feature is present."""
    since = asked.FEATURES["kernel.version"].since
    needed = f">= {since}"
    if asked.release(release) >= asked.release(since):
        return Requirement("kernel.version", PASS, release, needed)
    if newest_feature:
        hint = (
            "older than any kernel that merlab was tested on, but it has the features: go on, and tell us how it went"
        )
        return Requirement("kernel.version", WARN, release, needed, hint)
    return Requirement("kernel.version", FAIL, release, needed, f"boot Linux {since} or newer")


def btf(root: Path) -> Requirement:
    """Check for the kernel's own type information, which gives structure offsets."""
    path = "/sys/kernel/btf/vmlinux"
    if os.access(root / path.lstrip("/"), os.R_OK):
        return Requirement("kernel.btf", PASS, path, path)
    return _lacking("kernel.btf", f"no {path}", path)


def lockdown(root: Path) -> Requirement:
    """Check lockdown: under confidentiality no BPF program may read kernel memory, as the dataplane's do."""
    name, needed = "kernel.lockdown", "none or integrity"
    try:
        text = (root / "sys/kernel/security/lockdown").read_text(encoding="utf-8")
    except OSError:
        return Requirement(name, PASS, "not reported (securityfs is not mounted, or no lockdown)", needed)
    mode = text.partition("[")[2].partition("]")[0] or "none"
    if mode != "confidentiality":
        return Requirement(name, PASS, mode, needed)
    return Requirement(name, FAIL, mode, needed, "boot without lockdown=confidentiality on the kernel's command line")


def netns_cookie() -> Requirement:
    """Read from a socket the cookie of its network namespace, which identifies a pod."""
    name, needed = "kernel.netns_cookie", "SO_NETNS_COOKIE"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            netns.cookie_of(asking)
    except OSError as error:
        return _lacking(name, error.strerror or str(error), needed)
    return Requirement(name, PASS, needed, needed)


def sock_diag() -> Requirement:
    """Read what TCP sent of each socket: step 9 must know that it was nothing."""
    name, needed = "kernel.sock_diag", "TCP sockets can be asked what they sent"
    try:
        tcp_bytes.probe()
    except OSError as error:
        return _lacking(name, error.strerror or str(error), needed, error)
    return Requirement(name, PASS, needed, needed)


def namespaces() -> Requirement:
    """Create a pair of network interfaces in namespaces that end with the command."""
    name, needed = "kernel.namespaces", "network and mount namespaces, veth"
    pair = ["ip", "link", "add", "name", "merlab-a", "type", "veth", "peer", "name", "merlab-b"]
    if lacking := unless_found(name, needed, "unshare", "ip"):
        return lacking
    try:
        run(["unshare", "--net", "--mount", *pair])
    except ShortageError:
        raise
    except LabError as error:
        said = lines_of((error.stderr or error.what).strip())
        if "propagation" in (error.stderr or ""):
            hint = "the root of a chroot has to be a mount: bind-mount its folder onto itself before the chroot"
        else:
            hint = privileges.remedy() if "unshare:" in (error.stderr or "") else "modprobe veth"
        return Requirement(name, FAIL, said[0] if said else error.what, needed, hint)
    return Requirement(name, PASS, needed, needed)


def _mounted(name: str, kind: str, inside: str, look: Callable[[int], Requirement | None] | None = None) -> Requirement:
    needed = f"{kind} can be mounted"
    try:
        with asked.detached_mount(kind) as mounted:
            if inside and not asked.has(mounted, inside):
                return _lacking(name, f"no {inside} in {kind}", inside)
            return (look(mounted) if look else None) or Requirement(name, PASS, needed, needed)
    except OSError as error:
        return _lacking(name, f"cannot mount {kind}: {error.strerror}", needed, error)


def cgroup2() -> Requirement:
    """Mount cgroup2, and check whether a program on its root forbids the dataplane on the lab's own cgroup.

    Where the system has it mounted, it must be writable: the lab is made there.
    """
    found = _mounted("kernel.cgroup2", "cgroup2", "cgroup.controllers", _foreign_programs)
    place = cgroup.find_root(Path("/run/merlab"))
    if found.verdict != PASS or place is None:
        return found
    return _writable(found.name, place) or found


def settings(root: Path) -> Requirement:
    """Check that settings of the network can be written, as the lab does in its own namespaces."""
    name, place = "kernel.settings", root / "proc/sys/net/ipv4"
    return _writable(name, place) or Requirement(name, PASS, f"{place} can be written", f"{place} can be written")


def _writable(name: str, place: Path) -> Requirement | None:
    """Return the failure if a file system is read-only, as a container's runtime mounts it."""
    if not os.statvfs(place).f_flag & os.ST_RDONLY:
        return None
    lacking = shortage.of(OSError(errno.EROFS, os.strerror(errno.EROFS), str(place)))
    if lacking is None:
        return None
    hint = privileges.remedy() if privileges.is_beyond_reach() else lacking.hint
    return Requirement(name, FAIL, lacking.what, f"{place} can be written", hint)


def _foreign_programs(mounted: int) -> Requirement | None:
    hooks = {
        "connect4": bpf_syscall.CGROUP_INET4_CONNECT,
        "connect6": bpf_syscall.CGROUP_INET6_CONNECT,
        "getpeername4": bpf_syscall.CGROUP_INET4_GETPEERNAME,
        "getsockopt": bpf_syscall.CGROUP_GETSOCKOPT,
        "sock_ops": bpf_syscall.CGROUP_SOCK_OPS,
    }
    taken = []
    for hook, number in hooks.items():
        # A kernel without the hook reports this below bpf.programs.
        with contextlib.suppress(OSError):
            if bpf_syscall.is_exclusive(mounted, number):
                taken.append(hook)
    if not taken:
        return None
    return Requirement(
        "kernel.cgroup2",
        FAIL,
        f"a program on the root cgroup forbids others below it: {', '.join(taken)}",
        "no exclusive program on the root cgroup",
        "bpftool cgroup tree",
    )


def bpffs() -> Requirement:
    """Mount bpffs: pins keep the dataplane alive after merlab ends."""
    return _mounted("kernel.bpffs", "bpf", "")


def programs() -> list[Requirement]:
    """Load every kind of program of the dataplane, with the helper that tells pods apart if it calls it."""
    found = [_by_doing(name, "loads", partial(bpf_features.load, name)) for name in bpf_features.PROGRAMS]
    return [*found, _by_doing("bpf.netns_cookie", "known to programs", _load_with_cookie)]


def _load_with_cookie() -> None:
    for name in bpf_features.COOKIE_IN:
        bpf_features.load(name, cookie=True)


def maps() -> list[Requirement]:
    """Create every unusual kind of map of the dataplane."""
    return [_by_doing(name, "can be created", partial(bpf_features.create, name)) for name in bpf_features.MAPS]


def _by_doing(name: str, done: str, do: Callable[[], None]) -> Requirement:
    purpose = _PURPOSE.get(name, "tells pods apart")
    needed = f"{done} ({purpose})"
    try:
        do()
    except OSError as error:
        return _lacking(name, bpf_features.why(error), needed, error)
    return Requirement(name, PASS, done, needed)
