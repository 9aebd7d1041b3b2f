"""Programs of ours that still run where we attach, although no pin leads to them any more.

A bpffs that was unmounted by hand still exists in the mount namespaces that copied it, with everything that it holds.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_syscall
from merbridge_lab.dataplane import program_list
from merbridge_lab.dataplane.pins import PREFIX, Pins

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from merbridge_lab.dataplane.endpoints import Endpoint


def detach(pins: Pins, endpoints: Sequence[Endpoint], cgroups: Sequence[Path] = ()) -> None:
    """Detach them from the pods' cgroups and namespaces, and from `cgroups`; programs with other names stay."""
    places = [(cgroup, False) for cgroup in (*cgroups, *(endpoint.cgroup for endpoint in endpoints))]
    places += [(endpoint.netns, True) for endpoint in endpoints]
    targets = {(path.stat().st_ino, is_netns) for path, is_netns in places if path.exists()}
    kept = {link.id for link in program_list.links(pins).values()}
    for number in list(bpf_syscall.ids("link")):
        with contextlib.suppress(FileNotFoundError):  # gone meanwhile
            fd = bpf_syscall.by_id("link", number)
            try:
                link = bpf_syscall.link_info(fd)
                if number in kept or (link.target, link.attach_type == bpf_syscall.SK_LOOKUP) not in targets:
                    continue
                if _is_ours(link.prog_id):
                    bpf_syscall.link_detach(fd)
            finally:
                os.close(fd)


def _is_ours(program: int) -> bool:
    fd = bpf_syscall.by_id("prog", program)
    try:
        return bpf_syscall.prog_info(fd).name.startswith(PREFIX)
    finally:
        os.close(fd)
