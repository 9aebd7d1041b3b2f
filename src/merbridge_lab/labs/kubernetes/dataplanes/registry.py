"""Find a dataplane by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from merbridge_lab.errors import UsageError
from merbridge_lab.labs.kubernetes import dataplanes

if TYPE_CHECKING:
    from merbridge_lab.labs.kubernetes.dataplanes.cluster_dataplane import ClusterDataplane, Surroundings


def create(name: str, around: Surroundings) -> ClusterDataplane:
    """Return the dataplane `name` for a lab. Raise UsageError for one that does not exist."""
    module = dataplanes.part(name, "strategy")
    if module is None:
        raise UsageError(f"there is no dataplane called {name!r}; there are {', '.join(dataplanes.names())}")
    return cast("ClusterDataplane", module.Strategy(around))
