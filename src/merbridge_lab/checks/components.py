"""Check that a part of the lab is in order. The source is the kernel, never a file that merlab wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.api import Check, Finding, Reading, Verdict, fails, holds, tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from merbridge_lab.api import Component, Lab, ProcessIdentity


def able() -> Check:
    """Check that the machine offers what the lab needs."""
    return Check("machine.able", "this machine offers what the lab needs", assess_able, hint="merlab doctor")


def assess_able(lab: Lab) -> Finding:
    """Assess every requirement of the lab."""
    requirements = lab.requirements()
    evidence = tuple(
        Reading(f"machine:{requirement.name}", "", None, requirement.found) for requirement in requirements
    )
    for requirement in requirements:
        if requirement.verdict == Verdict.FAIL.value:
            remedy = f"; {requirement.hint}" if requirement.hint else ""
            return fails(
                f"{requirement.name}: found {requirement.found}, needed {requirement.needed}{remedy}", *evidence
            )
    return holds(f"{len(requirements)} requirements checked, none is missing: {tally(requirements)}", *evidence)


def in_order(part: str, description: str, pick: Callable[[Lab], Component]) -> Check:
    """Check that one part of the lab is complete and is merlab's."""

    def look(lab: Lab) -> Finding:
        chosen = pick(lab)
        problems = chosen.problems()
        evidence = chosen.readings()
        if problems:
            return fails("; ".join(problems), *evidence)
        left_out = [each.not_compared for each in evidence if each.not_compared]
        return holds("; ".join([f"{description}: seen", *left_out]), *evidence)

    return Check(f"{part}.in_order", description, look, hint="merlab up")


def entered() -> Check:
    """Check that the process found belongs to the pod: address, namespace and cgroup agree."""
    return Check(
        "enter.agrees",
        "address, namespace inode and cgroup of the process are the pod's",
        assess_entered,
        hint="merlab up",
    )


def assess_entered(seen: ProcessIdentity) -> Finding:
    """Assess whether the process shows what the pod should have."""
    evidence = (
        Reading(f"proc:{seen.workload}/net", "inode", seen.expected_netns, seen.netns),
        Reading(f"proc:{seen.workload}/cgroup", "", seen.expected_cgroup, seen.cgroup),
        Reading(f"netns:{seen.workload}/addresses", "", seen.expected_address, ", ".join(seen.addresses)),
    )
    if seen.pid is None:
        return fails(f"no process of {seen.workload}'s app was found in {seen.expected_cgroup}", *evidence)
    if seen.netns != seen.expected_netns:
        return fails(
            f"PID {seen.pid} is in network namespace {seen.netns}, not in {seen.workload}'s {seen.expected_netns}",
            *evidence,
        )
    if seen.cgroup != seen.expected_cgroup:
        return fails(f"PID {seen.pid} is in cgroup {seen.cgroup}, not in {seen.expected_cgroup}", *evidence)
    if seen.expected_address not in seen.addresses:
        return fails(
            f"the namespace of PID {seen.pid} has no address {seen.expected_address},"
            f" but {', '.join(seen.addresses) or 'none'}",
            *evidence,
        )
    return holds(
        f"PID {seen.pid} ({seen.comm}) is in {seen.workload}'s namespace, with {seen.expected_address}", *evidence
    )
