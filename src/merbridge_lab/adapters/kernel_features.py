"""What this kernel can do, found by trying it, and since which version a kernel can do it.

File systems are mounted detached (fsopen, fsmount): such a mount is on no path and in no namespace, and is removed with
its file descriptor. So nothing can be left behind, not even by SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters.system_call import system_call
from merbridge_lab.errors import UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Feature:
    """Something that merlab needs of the kernel: the first version that has it, and the build options for it."""

    since: str
    config: str


#: The one table of what is needed; "kernel.version" is the first version that has all of it: see "bpf.netns_cookie".
FEATURES = {
    "kernel.version": Feature("5.15", "CONFIG_BPF_SYSCALL"),
    "kernel.btf": Feature("5.4", "CONFIG_DEBUG_INFO_BTF"),
    "kernel.netns": Feature("3.8", "CONFIG_NET_NS and CONFIG_VETH"),
    "kernel.cgroup2": Feature("5.15", "CONFIG_CGROUPS and CONFIG_CGROUP_BPF"),
    "kernel.bpffs": Feature("5.2", "CONFIG_BPF_SYSCALL"),
    "kernel.netns_cookie": Feature("5.14", "CONFIG_NET_NS"),
    "kernel.sock_diag": Feature("4.19", "CONFIG_INET_DIAG and CONFIG_INET_TCP_DIAG"),
    "kernel.netfilter": Feature("5.2", "CONFIG_NF_TABLES, CONFIG_NFT_COMPAT and the xt_ matches and targets"),
    "bpf.connect4": Feature("4.17", "CONFIG_CGROUP_BPF"),
    "bpf.connect6": Feature("4.17", "CONFIG_CGROUP_BPF and CONFIG_IPV6"),
    "bpf.getpeername4": Feature("5.8", "CONFIG_CGROUP_BPF"),
    "bpf.getsockopt": Feature("5.3", "CONFIG_CGROUP_BPF"),
    "bpf.sock_ops": Feature("4.13", "CONFIG_CGROUP_BPF"),
    "bpf.sk_msg": Feature("4.17", "CONFIG_BPF_STREAM_PARSER (CONFIG_NET_SOCK_MSG)"),
    "bpf.sk_lookup": Feature("5.9", "CONFIG_INET and CONFIG_BPF_SYSCALL"),
    "bpf.raw_tracepoint": Feature("4.17", "CONFIG_BPF_EVENTS"),
    "bpf.netns_cookie": Feature("5.15", "CONFIG_CGROUP_BPF and CONFIG_NET_NS"),
    "bpf.links": Feature("5.9", "CONFIG_CGROUP_BPF and CONFIG_NET_NS"),
    "bpf.test_run": Feature("5.10", "CONFIG_BPF_EVENTS"),
    "bpf.sockhash": Feature("4.18", "CONFIG_BPF_STREAM_PARSER (CONFIG_NET_SOCK_MSG)"),
    "bpf.sk_storage": Feature("5.2", "CONFIG_BPF_SYSCALL and CONFIG_DEBUG_INFO_BTF"),
    "bpf.percpu_hash": Feature("4.6", "CONFIG_BPF_SYSCALL"),
    "bpf.ring_buffer": Feature("5.8", "CONFIG_BPF_SYSCALL"),
}

#: The first version that reports which programs are on a sockhash. Without it, counters show that ours are.
SOCKHASH_QUERY_SINCE = "5.18"


@dataclass(frozen=True)
class Fix:
    """A defect of the kernel that is not probed, since that may crash it: where it was fixed, and who says so."""

    what: str
    #: The first (major, minor) of the main line that has the fix, None if it is not known.
    since: tuple[int, int] | None
    #: By older (major, minor), the first stable release that has it.
    backports: dict[tuple[int, int], int]
    source: str


#: What sockets in a sockmap did to kernels. A release that is not known to have a fix does not have it.
SOCKMAP_FIXES = {
    # With the defect, a child of an MPTCP listener that fell back to TCP gets the wrong functions (page fault, WARN).
    # 6.17 has the fixes too, from a release that we could not find out.
    "mptcp": Fix(
        "connections of MPTCP listeners in a sockmap",
        (6, 18),
        {(6, 1): 159, (6, 12): 60},
        "commits c77b3b79a92e and fbade4bd08ba; Debian's changelogs of linux 6.1.159-1 and 6.12.63-1",
    ),
    # Without it, kTLS on a socket in a sockmap lets programs see and redirect plaintext. Which release of the main line
    # was the first to refuse the keys is not known; 7.3.4 does.
    "ktls": Fix(
        "kTLS on sockets in a sockmap is refused",
        (7, 3),
        {(6, 1): 189, (6, 12): 111},
        "Debian's changelogs of linux 6.1.190-1 and 6.12.111-1 (CVE-2026-93824); tried on 6.1.192, 6.12.118 and 7.3.4",
    ),
}


def is_fixed(fix: Fix, kernel: tuple[int, int, int]) -> bool:
    """Report whether a kernel is known to have a fix."""
    branch, patch = kernel[:2], kernel[2]
    if branch in fix.backports:
        return patch >= fix.backports[branch]
    return fix.since is not None and branch >= fix.since


def stable_release(
    release: str | None = None, version: str | None = None, root: Path = Path("/")
) -> tuple[int, int, int]:
    """Return the kernel's stable release as (major, minor, patch); the patch is 0 if the kernel does not tell.

    Distributions freeze `uname -r` and put the release that they are based on elsewhere: Debian into `uname -v`, Ubuntu
    into /proc/version_signature.
    """
    system = os.uname()
    signature = ""
    with contextlib.suppress(OSError):
        signature = (root / "proc/version_signature").read_text(encoding="utf-8")
    for pattern, text in (
        (r"\bDebian (\d+)\.(\d+)\.(\d+)", system.version if version is None else version),
        (r"(\d+)\.(\d+)\.(\d+)\s*$", signature),
        (r"^(\d+)\.(\d+)(?:\.(\d+))?", system.release if release is None else release),
    ):
        if found := re.search(pattern, text):
            return int(found[1]), int(found[2]), int(found[3] or 0)
    return (0, 0, 0)


def cannot(feature: str, detail: str | None = None, *, named: str | None = None) -> UnsupportedFeatureError:
    """Build the error for a missing feature of the table, to be raised by the caller that needed it.

    `named` is what the caller needed it for, in words.
    """
    return UnsupportedFeatureError(named or feature, FEATURES[feature].since, detail)


def release(text: str | None = None) -> tuple[int, int]:
    """Return the kernel's version as (major, minor), from `text` or the running kernel; (0, 0) if it is unknown."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release if text is None else text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


#: The value of kernel.yama.ptrace_scope with which not even root may read another process, until the next boot.
NOBODY_TRACES = 3
#: What to type then: it shows what sets it. A running kernel does not accept another value any more.
FIND_PTRACE_SCOPE = "grep -rs ptrace_scope /etc/sysctl.conf /etc/sysctl.d /run/sysctl.d /usr/lib/sysctl.d"


def ptrace_scope(root: Path = Path("/")) -> int | None:
    """Return kernel.yama.ptrace_scope; None if this kernel has no Yama. Raises OSError."""
    try:
        return int((root / "proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


#: The same numbers on every architecture: they are newer than the common table.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6


@contextlib.contextmanager
def detached_mount(kind: str) -> Iterator[int]:
    """Mount a file system of this kind nowhere; return a directory descriptor of its root. Raises OSError."""
    context = system_call(_FSOPEN, kind.encode() + b"\0", _CLOEXEC)
    try:
        system_call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        mounted = system_call(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)
    try:
        yield mounted
    finally:
        os.close(mounted)


def has(directory: int, path: str) -> bool:
    """Report whether `path` exists below an open directory."""
    try:
        os.stat(path, dir_fd=directory)
    except OSError:
        return False
    return True
