"""The commands that a person would type as root on the host to create a pod: each line enters its namespaces itself."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Protocol

from merbridge_lab.adapters import links
from merbridge_lab.adapters.command import pasteable
from merbridge_lab.labs.embedded import filesystem, rule_templates, sysctl_drift, topology
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from merbridge_lab.labs.embedded.topology import PodSpec


class PodPaths(Protocol):
    """What the lines use of a pod: its spec, and where its namespaces, files and cgroup are."""

    spec: PodSpec
    run: Path
    folder: Path
    netns: Path
    mntns: Path
    cgroup: Path


def lines(pod: PodPaths, node: Path, daemons: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the main lines for `pod`; its files (configuration, certificates) are assumed to be written."""
    return [*_network(pod, node), *_rules(pod), *_files(pod), *_processes(pod, daemons)]


def _network(pod: PodPaths, node: Path) -> list[str]:
    spec, gateway, eth = pod.spec, topology.NODE_ADDRESS, links.POD_END
    at_pod, at_node = (f"nsenter --net={netns}" for netns in (pod.netns, node))
    return [
        f"touch {pod.netns} && unshare --net={pod.netns} true",
        f"{at_pod} sysctl -q -w net.ipv4.ip_forward=0 {sysctl_drift.TYPED}",
        f"{at_node} ip link add {spec.veth} type veth peer name {eth} netns {pod.netns}",
        f"{at_node} ip address add {gateway}/32 dev {spec.veth} && {at_node} ip link set {spec.veth} up",
        f"{at_node} ip route add {spec.ip}/32 dev {spec.veth}",
        f"{at_pod} ip link set lo up && {at_pod} ip link set {eth} up",
        f"{at_pod} ip address add {spec.ip}/32 dev {eth} && {at_pod} ip route add {gateway} dev {eth}",
        f"{at_pod} ip route add default via {gateway}",
    ]


def _rules(pod: PodPaths) -> list[str]:
    if not pod.spec.rules:
        return []
    rules = [line for line in lines_of(rule_templates.pod_rules(pod.spec.annotations)) if not line.startswith("#")]
    restore = f"nsenter --net={pod.netns} iptables-{pod.spec.backend}-restore"
    return ["\n".join([f"{restore} <<'EOF'", *rules, "EOF"])]


def _files(pod: PodPaths) -> list[str]:
    at_pod = f"nsenter --mount={pod.mntns}"
    run, folder, name = pod.run, pod.folder, pod.spec.name
    # What a cover hides is bound elsewhere meanwhile; the cover hides other pods, and other labs.
    own = [
        f"mount --rbind {run} /mnt",
        f"mount -t tmpfs -o mode=0755 {run.name} {run.parent}",
        f"mkdir -p {folder}",
        f"mount --bind /mnt/pods/{name} {folder}",
        *([f"touch {run}/envoy", f"mount --bind /mnt/envoy {run}/envoy"] if pod.spec.sidecar else []),
        "umount -l /mnt",
    ]
    return [
        f"touch {pod.mntns} && unshare --mount={pod.mntns} true",
        f"{at_pod} sh -ec {shlex.quote('; '.join(own))}",
        *(f"{at_pod} mount --bind {folder / name} /etc/{name}" for name in filesystem.texts(pod.spec)),
    ]


def _processes(pod: PodPaths, daemons: Mapping[str, Sequence[str]]) -> list[str]:
    folders = " ".join(str(pod.cgroup / kind) for kind in daemons)
    return [f"mkdir -p {folders}", *(pasteable(argv) for argv in daemons.values())]
