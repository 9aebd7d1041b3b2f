"""The lab's iptables rules as text: Istio's for a pod, and for the node the ones that act as kube-proxy."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from merbridge_lab import ruleset, templates
from merbridge_lab.adapters import iptables
from merbridge_lab.dataplane import istio_rules
from merbridge_lab.evidence import Unread
from merbridge_lab.labs.embedded import topology

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from merbridge_lab.labs.embedded.topology import Annotations

    _Chains = Mapping[tuple[str, str], list[str]]

#: The tables that hold our rules, in a pod and in the node.
OURS = ("nat", "filter")
NODES = ("nat",)


def template(name: str, **values: object) -> str:
    """Render `data/NAME`."""
    return templates.render(data(name), **values)


def data(name: str) -> str:
    """Read `data/NAME`, which is part of the package."""
    return (files("merbridge_lab") / "data" / name).read_text()


def pod_rules(annotations: Annotations = ()) -> str:
    """Return the rules of a pod that has a sidecar and these annotations. Raise ValueError for a wrong one."""
    return istio_rules.text(dict(annotations))


def service_rules(services: Sequence[topology.Service] = topology.SERVICES) -> str:
    """Return the rules of the node."""
    addresses = sorted({endpoint.address for service in services for endpoint in service.endpoints})
    return template("iptables/services.rules.j2", services=services, addresses=addresses)


def by_chain(text: str) -> _Chains:
    """Group the rules of an iptables-save text by table and chain, without counters."""
    chains: dict[tuple[str, str], list[str]] = {}
    for rule in ruleset.parse(text):
        chains.setdefault((rule.table, rule.chain), []).append(rule.spec)
    return chains


def problems(
    netns: Path, text: str, backend: str, *, where: str, tables: Sequence[str] = OURS, wrong: str, stray: str
) -> list[str]:
    """Describe how the rules in `netns` differ from `text`, in all tables, backends and families.

    The sentence is `wrong` if our rules are not as they should be. It begins with `stray` if other rules are somewhere
    else: in other tables, the other backend, native nftables. It is also a problem if the rules cannot be read, or if a
    table or a chain itself is not as iptables makes it; `where` names the namespace for that.
    """
    seen = iptables.snapshot(netns)
    unread = [str(each) for each in dict.fromkeys(seen.unread)]
    told = seen.texts[backend]
    if not isinstance(seen.altered, Unread) and seen.altered:
        return [f"{each} in {where}" for each in seen.altered]
    if not isinstance(told, Unread) and not _are(by_chain(told), by_chain(text), tables):
        return [wrong]
    elsewhere = [each for names in (seen.native, seen.beside) if not isinstance(names, Unread) for each in names]
    elsewhere += [
        f"{rule} ({kind})"
        for kind, there in seen.texts.items()
        if not isinstance(there, Unread)
        for rule in ruleset.parse(there)
        if kind != backend or rule.table not in tables
    ]
    return ([f"{stray}: {elsewhere[0]}"] if elsewhere else []) + unread


def _are(found: _Chains, wanted: _Chains, tables: Sequence[str]) -> bool:
    """Report whether the rules of `tables` are the same, in order."""
    return all(found.get(chain) == wanted.get(chain) for chain in {*found, *wanted} if chain[0] in tables)
