"""The link of one pod to the node, and the node's links to all pods: checked from both ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters import links, netns, network_dump
from merbridge_lab.dataplane import strangers
from merbridge_lab.labs.embedded import network_drift, sysctl_drift, topology

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from merbridge_lab.adapters.network_dump import Network
    from merbridge_lab.labs.embedded.topology import PodSpec

POD_SYSCTLS = sysctl_drift.wanted([links.POD_END], forward=False)


def node_sysctls(network_: Network) -> dict[str, str]:
    """Return the settings that merlab sets in the node, with the links that it has."""
    return sysctl_drift.wanted(_own(network_), forward=True)


def _own(node: Network) -> list[str]:
    return [each.name for each in node.links.values() if each.kind == "veth"]


def read_node(where: Path) -> Network:
    """Read the node's namespace, with all its settings. Raises OSError."""
    return network_dump.read(where, settings=True)


def twin_specs() -> tuple[PodSpec, ...]:
    """List all control pods that merlab may create."""
    sleep, helloworld, *_ = topology.PODS
    return (
        topology.control_client(sleep),
        topology.control_client(sleep, 1),
        topology.control_client(helloworld),
        *topology.control_pair(),
    )


def _all_specs() -> tuple[PodSpec, ...]:
    return (*topology.ALL_PODS, *twin_specs())


def of_node(machines: Path, found: Network) -> list[str]:
    """Describe what is wrong with the node's network, except for the links to the pods.

    `machines` is where network namespaces are pinned. A link to a pod, or to a control pod, is allowed as long as its
    pin exists. If a pod's pin is missing, its link is left over: the pod reports the problem, and the link is recreated
    with it.
    """
    pins = {each.name for each in machines.iterdir()}
    there = [spec for spec in _all_specs() if spec.name in pins and netns.is_pinned(machines / spec.name)]
    left_over = {spec.veth for spec in topology.ALL_PODS} - {spec.veth for spec in there}
    compared = network_drift.compare(
        found,
        network_drift.bare(),
        neighbours=_beyond(machines, there, found),
        also=[line for spec in there for line in network_drift.nodes_end(spec)],
    )
    compared, altered = network_drift.altered(compared)
    sentences = [f"in the node's network namespace {each}" for each in altered]
    sentences += [f"the node's network namespace has no {kind} {line}" for kind, line in compared.missing]
    sentences += _hanging(topology.NODE, machines / topology.NODE, compared.extra)
    sentences += [
        network_drift.stranger("the node's network namespace", (kind, line))
        for kind, line in compared.extra
        if not left_over & {*line.split()}
    ]
    told = sysctl_drift.differing(found.sysctls, _own(found), forward=True)
    return sentences + [f"in the node's network namespace {each}" for each in told]


def _hanging(name: str, where: Path, extra: Iterable[network_drift.Line]) -> Iterator[str]:
    """Describe what is attached to links that have a foreign queueing discipline: the discipline exists to carry it."""
    if any(kind == "queueing discipline" for kind, _ in extra):
        yield from (each.sentence for each in strangers.on_links(name, where))


def _beyond(machines: Path, specs: list[PodSpec], found: Network) -> dict[str, str]:
    """Return, for each link of the node, the pod's end of it as ARP knows it, if that was resolved."""
    asked = {line.rpartition(" dev ")[2] for line in found.lines["neighbour"]}
    beyond = {}
    for spec in specs:
        if spec.veth in asked and netns.is_pinned(machines / spec.name):
            end = links.hardware(machines / spec.name, links.POD_END)
            beyond[spec.veth] = f"{spec.ip} at {end}"
    return beyond


def of_pod(spec: PodSpec, where: Path, node: Path, node_found: Network | None = None) -> Iterator[str]:
    """Describe what is wrong with a pod's network, at both ends."""
    found = network_dump.read(where, settings=True)
    space, end = f"the network namespace of {spec.name}", network_drift.pods_end(spec)
    at_node = (node_found or network_dump.read(node)) if netns.is_pinned(node) else None
    other = at_node.links.get(spec.veth) if at_node else None
    gateway = {links.POD_END: f"{topology.NODE_ADDRESS} at {other.address}"} if other else {}
    compared = network_drift.compare(found, network_drift.bare() | end, neighbours=gateway)
    for setting in sysctl_drift.differing(
        found.sysctls, [links.POD_END] * (links.POD_END in found.links), forward=False
    ):
        yield f"in {space} {setting}"
    compared, altered = network_drift.altered(compared)
    yield from (f"in {space} {each}" for each in altered)
    lacking = [line for line in compared.missing if line in end]
    if lacking:
        yield (
            f"{links.POD_END} of {spec.name} is not there with its address {spec.ip} and its routes: "
            f"no {lacking[0][0]} {lacking[0][1]}"
        )
    for kind, line in compared.missing:
        if (kind, line) not in end:
            yield f"{'lo is down: ' if 'lo (loopback)' in line else ''}{space} has no {kind} {line}"
    yield from _hanging(spec.name, where, compared.extra)
    yield from (network_drift.stranger(space, each) for each in compared.extra)
    if at_node is None:
        yield f"{spec.name} has no node to be linked to ({node})"
        return
    there = {(kind, line) for kind, lines in at_node.lines.items() for line in lines}
    if missing := sorted(network_drift.nodes_end(spec) - there):
        yield f"the node has no link {spec.veth} with a route to {spec.name} ({spec.ip}): no {' '.join(missing[0])}"
    elif links.POD_END in found.links and other is not None:
        own = found.links[links.POD_END]
        spaces = links.number_of(where, node), links.number_of(node, where)
        if None in spaces or (own.space, other.space) != spaces:
            yield from _ends_elsewhere(spec, own.space, other.space, spaces)
        elif (own.peer, other.peer) != (other.index, own.index):
            yield f"{spec.veth} of the node and {links.POD_END} of {spec.name} are not two ends of one link"


def _ends_elsewhere(
    spec: PodSpec, own: int | None, other: int | None, spaces: tuple[int | None, int | None]
) -> Iterator[str]:
    """Describe which end of a pod's link has its other end in a namespace other than the node's and the pod's."""
    to_node, to_pod = spaces
    if to_node is None or own != to_node:
        yield f"{links.POD_END} of {spec.name} has its other end in another network namespace than the node's"
    if to_pod is None or other != to_pod:
        yield f"{spec.veth} of the node has its other end in another network namespace than that of {spec.name}"
