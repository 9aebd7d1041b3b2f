"""Where a workload's process is: its namespaces, address and cgroup, and what they should be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessIdentity:
    """The namespaces of a workload's process as seen from inside, next to what they should be.

    `looked` is the output of the command that inspected it.
    """

    workload: str
    pid: int | None
    comm: str
    expected_address: str
    addresses: tuple[str, ...]
    expected_netns: int
    netns: int
    expected_cgroup: str
    cgroup: str
    looked: str = ""
