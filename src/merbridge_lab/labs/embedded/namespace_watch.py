"""Changes in the lab's network namespaces during a proof, reported by the kernel as they happen.

A rule or a route that exists for one cell only is absent both when `verify` begins and when it ends. Expected changes
are: the links of control pods, which merlab creates and removes meanwhile, with what belongs to them; and neighbour
resolution.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from merbridge_lab.adapters import links, netlink_hooks, netns, sysctls
from merbridge_lab.adapters.network_changes import Listener
from merbridge_lab.labs.embedded import nat_entries, network_drift, pod_link, sysctl_drift, topology
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from merbridge_lab.adapters.network_changes import Change
    from merbridge_lab.labs.embedded.pod import Pod
    from merbridge_lab.labs.embedded.topology import PodSpec

_TABLE = "nftables table"
_STATES = ("down", "without carrier", "up mtu 1500")


@contextlib.contextmanager
def watched(node: Path, pods: Iterable[Pod]) -> Iterator[Callable[[], list[str]]]:
    """Watch the namespaces of node and pods for the duration of the block.

    Yield a function that describes, one sentence each, the unexpected changes until then.
    """
    spaces = {pod.spec.name: pod.netns for pod in pods}
    specs = {pod.spec.name: pod.spec for pod in pods}
    with contextlib.ExitStack() as stack:
        listeners: dict[str, Listener] = {}
        found: list[str] = []
        for name, path in {topology.NODE: node, **spaces}.items():
            try:
                listeners[name] = stack.enter_context(contextlib.closing(Listener(path)))
            except OSError as error:
                found.append(str(unread(f"what changes in {where(name)}", error)))

        try:
            writes = stack.enter_context(contextlib.closing(sysctls.Writes()))
            for name, path in {topology.NODE: node, **spaces}.items():
                own = [links.POD_END] if name in specs else [spec.veth for spec in specs.values()]
                netns.run_inside(path, partial(writes.add, name, _folders(own)))
        except OSError as error:
            found.append(str(unread("which settings are written meanwhile", error)))
            writes = None

        def tell() -> list[str]:
            for name, listener in listeners.items():
                try:
                    changes = listener.changes()
                    beyond = _beyond(name, node, spaces, specs) if any(map(_is_learnt, changes)) else {}
                except OSError as error:
                    found.append(str(unread(f"what changed in {where(name)}", error)))
                else:
                    found.extend(strange(name, changes, specs.get(name), tuple(specs.values()), beyond))
            for name, setting in writes.seen() if writes else ():
                found.append(f"in {where(name)} the setting {setting} was written during verification")
            found.extend(nat_entries.problems(node, specs, spaces))
            return list(dict.fromkeys(found))

        yield tell


def _folders(own: Iterable[str]) -> list[str]:
    """List the folders of settings that decide about TCP, in a namespace with these links."""
    of_links = [f"ipv4/{kind}/{each}" for kind in ("conf", "neigh") for each in ("all", "default", "lo", *own)]
    return ["core", "ipv4", "ipv4/route", "netfilter", *of_links]


def where(name: str) -> str:
    """Return the name of the network namespace of the node or of a pod."""
    return "the node's network namespace" if name == topology.NODE else f"the network namespace of {name}"


def strange(
    name: str, changes: Iterable[Change], own: PodSpec | None, pods: Collection[PodSpec], beyond: Mapping[str, str]
) -> Iterator[str]:
    """Describe unexpected changes in the namespace of the pod `own`, or of the node.

    `beyond` maps each link to its other end ("ADDRESS at HARDWARE").
    """
    control_pair = () if own else pod_link.twin_specs()
    ends = network_drift.pods_end(own) if own else {line for pod in pods for line in network_drift.nodes_end(pod)}
    expected = network_drift.bare() | ends | {("neighbour", f"{told} dev {link}") for link, told in beyond.items()}
    if own:  # merlab itself flushes and restores these; their content is compared around each flush
        expected.add((_TABLE, "ip nat"))
    passing = {line for spec in control_pair for line in network_drift.nodes_end(spec)}
    passing |= {("link", f"{spec.veth} (veth) {state}") for spec in control_pair for state in _STATES}
    wanted = sysctl_drift.wanted(
        [links.POD_END] if own else [each.veth for each in (*pods, *control_pair)], forward=own is None
    )
    came: dict[tuple[str, str], bool] = {}
    for each in changes:
        line = (each.kind, each.line)
        if each.kind == "setting":
            setting, _, value = each.line.rpartition(" ")
            is_right = value == wanted.get(setting, "0")
        elif each.kind == "neighbour" and _is_learnt(each):
            is_right = line in expected or any(
                each.line.startswith(f"{spec.ip} at ") and each.line.endswith(f" dev {spec.veth}")
                for spec in control_pair
            )
        else:
            is_right = line in passing or (each.is_there and line in expected)
        if not is_right:
            came.setdefault(line, each.is_there)
    for (kind, told), is_there in came.items():
        what = "changed" if kind == _TABLE else "came" if is_there else "went"
        yield f"in {where(name)} the {kind} {told} {what} during verification"


def _is_learnt(change: Change) -> bool:
    return change.kind == "neighbour" and not change.line.endswith(", set by hand")


def _beyond(name: str, node: Path, spaces: Mapping[str, Path], specs: Mapping[str, PodSpec]) -> dict[str, str]:
    """Return the other end of each link of a namespace. Raises OSError."""
    if name != topology.NODE:
        there = netns.run_inside(node, netlink_hooks.hardware)
        return {links.POD_END: f"{topology.NODE_ADDRESS} at {there.get(specs[name].veth)}"}
    return {
        spec.veth: f"{spec.ip} at {netns.run_inside(spaces[pod], netlink_hooks.hardware).get(links.POD_END)}"
        for pod, spec in specs.items()
    }
