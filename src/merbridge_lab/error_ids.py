"""The ids of errors. Each one has a section in docs/troubleshooting.md, with the id as its anchor."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

#: Where the sections are. The repository has no public address yet: its documents are named by their path.
TROUBLESHOOTING = "docs/troubleshooting.md"

ErrorId: TypeAlias = Literal[
    # the machine
    "root.needed",
    "requirement.missing",
    "bcc.missing",
    "envoy.missing",
    "tool.missing",
    "tool.failed",
    "machine.full",
    "file.not_written",
    "reading.failed",
    "program.foreign",
    # guests
    "kernel.unknown",
    "guest.failed",
    "guest.no_timings",
    # the run
    "usage",
    "feature.not_built",
    "capability.missing",
    "installation.broken",
    "interrupted",
    "internal",
    "run.skipped",
    # the lab
    "lab.busy",
    "lab.not_up",
    "lab.incomplete",
    "lab.disturbed",
    "run_directory.foreign",
    "cgroup.foreign",
    "removal.failed",
    "rules.other_backend",
    "rules.flushed",
    "rules.altered",
    "rules.not_saved",
    "rules.not_restored",
    "rules.unsupported",
    "sidecar.gone",
    "sidecar.failed",
    "dataplane.failed",
    "dataplane.incomplete",
    "dataplane.none",
    "dataplane.another",
    "compiled.unusable",
    "trace.readers",
    "verify.disturbed",
    "matrix.unexpected",
    # the agent of a node
    "agent.older",
    "agent.no_pins",
    "agent.capabilities",
    "agent.no_image",
    "agent.crashed",
    "agent.foreign",
    # labs on Kubernetes
    "docker.unreachable",
    "docker.unsupported",
    "cluster.foreign",
    "cluster.other_node",
    "cluster.failed",
    "cluster.incomplete",
    "cluster.unreachable",
    "namespace.foreign",
    "kubeconfig.unusable",
    "node.stopped",
    "node.no_tools",
    "node.elsewhere",
    "image.not_pulled",
    "istio.failed",
    "pod.not_scheduled",
    "pod.not_ready",
    "pod.restarted",
    "manifest.unusable",
    "merbridge.no_image",
    "merbridge.crashed",
    "merbridge.foreign",
    "merbridge.not_in_mesh",
    "merbridge.intercepts_nothing",
]
ERROR_IDS: tuple[ErrorId, ...] = get_args(ErrorId)


def see(anchor: str) -> str:
    """Return the link to the section of an error or a check."""
    return f"{TROUBLESHOOTING}#{anchor}"
