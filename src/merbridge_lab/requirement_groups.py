"""The requirements in groups, as `doctor` and step 0 show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.requirements import Requirement

#: The group of a requirement, by the first word of its name; the others are of the machine.
_GROUPS = {
    "kernel": "kernel",
    "bpf": "eBPF",
    "bcc": "eBPF",
    "sockmap": "sockets",
    "tool": "tools",
    "envoy": "tools",
    "docker": "cluster",
    "kind": "cluster",
    "istioctl": "cluster",
    "istio": "cluster",
    "kubernetes": "cluster",
    "cluster": "cluster",
    "merbridge": "cluster",
    "merlab": "cluster",
}


def in_groups(found: Sequence[Requirement]) -> dict[str, list[Requirement]]:
    """Return the requirements by their group, in the order in which each group first appears."""
    groups: dict[str, list[Requirement]] = {}
    for each in found:
        groups.setdefault(_GROUPS.get(each.name.partition(".")[0], "machine"), []).append(each)
    return groups


def tally(found: Sequence[Requirement]) -> str:
    """Count for each group how many of its requirements are met: machine 10/10 · eBPF 12/12."""
    groups = in_groups(found).items()
    return " · ".join(f"{name} {sum(one.verdict == 'pass' for one in group)}/{len(group)}" for name, group in groups)
