"""The lab's texts of iptables rules: Istio's for a pod, the stand-in for kube-proxy for the node."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import TYPE_CHECKING

from merbridge_lab import ruleset
from merbridge_lab.adapters import iptables
from merbridge_lab.adapters.iptables import inside
from merbridge_lab.adapters.proc import run
from merbridge_lab.drivers.embedded import layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import jinja2

#: The tables that hold rules of ours, in a pod and in the node.
OURS = ("nat", "filter")
NODES = ("nat",)


def template(name: str, **values: object) -> str:
    """Render `data/NAME`."""
    return str(_compiled(name).render(**values))


@functools.cache
def _compiled(name: str) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - YAML and iptables, from our own data
    )
    return environment.from_string(data(name))


def data(name: str) -> str:
    """Read `data/NAME`, which travels inside the package."""
    return (files("merbridge_lab") / "data" / name).read_text()


def pod_rules() -> str:
    """Give the rules of every pod that has a sidecar."""
    return data("iptables/pod.rules")


def service_rules(services: Sequence[layout.Service] = layout.SERVICES) -> str:
    """Give the rules of the node."""
    addresses = sorted({endpoint.address for service in services for endpoint in service.endpoints})
    return template("iptables/services.rules.j2", services=services, addresses=addresses)


def by_chain(text: str) -> Mapping[tuple[str, str], list[str]]:
    """Sort the rules of an iptables-save text by table and chain, counters left out."""
    chains: dict[tuple[str, str], list[str]] = {}
    for rule in ruleset.parse(text):
        chains.setdefault((rule.table, rule.chain), []).append(rule.spec)
    return chains


def others(netns: Path, backend: str, *, tables: Sequence[str] = OURS) -> list[str]:
    """Name the rules in `netns` that are where none of ours are: in other tables, the other backend, native nftables.

    Raises LabError when they cannot be read.
    """
    found = iptables.snapshot(netns)
    strays = [
        f"{rule} ({kind})"
        for kind, text in found.texts.items()
        for rule in ruleset.parse(text)
        if kind != backend or rule.table not in tables
    ]
    return [*strays, *found.native]


def are_loaded(netns: Path, text: str, backend: str, *, tables: Sequence[str] = OURS) -> bool:
    """Whether the rules of `tables` in `netns` are those of `text`, in their order, and no others.

    Raises LabError when they cannot be read.
    """
    found = by_chain(run(inside(netns, f"iptables-{backend}-save")).stdout)
    wanted = by_chain(text)
    return all(found.get(chain) == wanted.get(chain) for chain in {*found, *wanted} if chain[0] in tables)
