"""kind's objects that are merlab's: the containers of its cluster (known by a mount) and a network (by a label)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters import docker, kind_cli
from merbridge_lab.adapters.command import pasteable
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kind import names
from merbridge_lab.requirements import Requirement

if TYPE_CHECKING:
    from merbridge_lab.adapters.docker import Container

_LABEL = f"{kind_cli.LABEL}={names.CLUSTER}"
NETWORK_LABEL = f"{names.NETWORK_LABEL}={names.CLUSTER}"


def nodes() -> list[Container]:
    """List the containers of the cluster, whoever created it. Raise LabError if Docker does not answer."""
    return docker.containers(_LABEL)


def are_ours(found: list[Container]) -> bool:
    """Report whether merlab created them: its configuration gave them a mount that no other has."""
    return bool(found) and all(names.MARK in container.mounts for container in found)


def own_network() -> bool:
    """Report whether there is a network that merlab created."""
    labels = docker.network_labels(names.NETWORK)
    return labels is not None and labels.get(names.NETWORK_LABEL) == names.CLUSTER


def exists() -> bool:
    """Report whether anything of the lab exists: nodes, a network, a kind process that a killed merlab left running."""
    return are_ours(nodes()) or own_network() or bool(kind_cli.at_work(names.CLUSTER))


def foreign() -> LabError:
    """Return the error for a cluster of that name that is not merlab's."""
    return LabError(
        f"there is a kind cluster called {names.CLUSTER} already, and merlab did not make it: it stays untouched",
        hint=f"{pasteable(kind_cli.delete_argv(names.CLUSTER))}  # if you do not need it",
        id="cluster.foreign",
    )


def requirement() -> list[Requirement]:
    """Check whether the cluster's name is free, or merlab's; return nothing if Docker does not answer."""
    try:
        found = nodes()
    except LabError:
        return []
    needed = f"no foreign cluster called {names.CLUSTER}"
    if found and not are_ours(found):
        return [Requirement("cluster.name", "fail", foreign().what, needed, foreign().hint)]
    said = f"{names.CLUSTER} is merlab's" if found else f"{names.CLUSTER} is free"
    return [Requirement("cluster.name", "pass", said, needed)]
