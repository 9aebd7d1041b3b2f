"""Programs of others on the path of one batch, read in a millisecond: fast enough to detect one during a single cell.

A proof checks everything that `strangers` finds when it begins and when it ends. This module reads, with each batch,
the programs that run for processes of the pods (cgroups), in their namespaces, on netfilter's hooks, and on links
through BPF: those that can be attached without a netlink notification. It does not check which programs the machine has
loaded meanwhile: systemd and others load theirs at any time, and a program that is not attached on the path changes
nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_syscall, netlink_hooks
from merbridge_lab.dataplane import strangers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def on_cgroup(ours: frozenset[int], cgroup: Path) -> Iterator[str]:
    """Describe, one sentence each, which programs of others run for processes in a cgroup. Raises OSError."""
    fd = os.open(cgroup, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for kind in _types(fd):
            for program in bpf_syscall.attached_progs(fd, kind, bpf_syscall.QUERY_EFFECTIVE):
                if program not in ours:
                    hook = strangers.CGROUP_TYPES.get(kind, f"attach type {kind}")
                    yield f"on the cgroup {cgroup} {hook} runs another program, {strangers.named(program)}"
    finally:
        os.close(fd)


_known: list[tuple[int, ...]] = []


def _types(fd: int) -> tuple[int, ...]:
    """Return the attach types that can affect TCP; the kernel is asked once which ones it has."""
    if not _known:
        _known.append(tuple(each for each in strangers.cgroup_types(fd) if each not in strangers.ALLOWED_ABOVE))
    return _known[0]


def on_netfilter(namespaces: Mapping[str, Path]) -> list[str]:
    """Describe, one sentence each, which programs are on netfilter's hooks there, or that this is unknown."""
    seen = strangers.on_netfilter(namespaces)
    return [each.sentence if isinstance(each, strangers.Stranger) else str(each) for each in seen]


def in_namespace(ours: frozenset[int], name: str, path: Path) -> list[str]:
    """Describe, one sentence each, which programs of others run in the network namespace of the calling thread.

    The namespace is pinned at `path`. Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    found: list[str] = []
    try:
        for kind, hook in ((bpf_syscall.SK_LOOKUP, "sk_lookup"), (bpf_syscall.FLOW_DISSECTOR, "the flow dissector")):
            found += [
                f"in the network namespace of {name} {hook} runs another program, {strangers.named(program)}"
                for program in bpf_syscall.attached_progs(fd, kind)
                if program not in ours
            ]
    finally:
        os.close(fd)
    return found + [
        f"on the link {hung.where} of {name} there is {hung.what}: {strangers.named(hung.program)}"
        for hung in netlink_hooks.programs_on_links()
    ]
