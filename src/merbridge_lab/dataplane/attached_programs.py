"""Programs of others on the way of one batch, read in a millisecond: enough to see that one is there for one cell only.

All that `strangers` finds is looked for when a proof begins and when it ends. What is read here, with each batch, are
the programs that run for processes of the pods (cgroups), in their namespaces, on netfilter's hooks and on links by way
of BPF: those that can be attached without a notice of netlink's. Which programs the machine has loaded meanwhile is not
asked: systemd and others load theirs whenever they like, and one that is attached nowhere on the way changes nothing.
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
    """Say, a sentence each, which programs of others run for processes in a cgroup. Raises OSError."""
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
    """Return the attach types that can touch TCP; which there are, the kernel is asked once."""
    if not _known:
        _known.append(tuple(each for each in strangers.cgroup_types(fd) if each not in strangers.ALLOWED_ABOVE))
    return _known[0]


def on_netfilter(namespaces: Mapping[str, Path]) -> list[str]:
    """Say, a sentence each, which programs are on netfilter's hooks there, or that nobody can tell."""
    seen = strangers.on_netfilter(namespaces)
    return [each.sentence if isinstance(each, strangers.Stranger) else str(each) for each in seen]


def in_namespace(ours: frozenset[int], name: str, path: Path) -> list[str]:
    """Say, a sentence each, which programs of others run in the calling thread's network namespace, pinned at `path`.

    Raises OSError.
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
