"""What is applied to the cluster, as text for people and as objects for the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from merbridge_lab.errors import UsageError
from merbridge_lab.labs.kubernetes import dataplanes, manifest_templates, topology

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.labs.kubernetes.settings import Settings

#: What changes the namespace for all that is in it; see cluster_wide.
OF_NAMESPACE = ("namespace", "strict")
WORKLOADS = ("sleep", "helloworld")
#: In the order in which they are applied: a pod gets its sidecar when it is created.
APPLIED = (*OF_NAMESPACE, *WORKLOADS)
NAMES = (
    *("kind", *APPLIED, "helper"),
    *(name for name in dataplanes.names() if dataplanes.part(name, "manifest")),
    "twin",
    "disposable",
)


def text(name: str, settings: Settings) -> str:
    """Return a manifest by name. Raise LabError for one that does not exist."""
    if name not in NAMES:
        raise UsageError(f"there is no manifest called {name!r}; there are {', '.join(NAMES)}")
    if (of_dataplane := dataplanes.part(name, "manifest")) is not None:
        return str(of_dataplane.shown(settings))
    return manifest_templates.rendered(name, settings)


def texts(names: Sequence[str], settings: Settings) -> str:
    """Return several manifests as one stream of documents."""
    return "---\n".join(text(name, settings) for name in names)


def objects(name: str, settings: Settings) -> list[dict[str, Any]]:
    """Return the objects of a manifest."""
    return [one for one in yaml.safe_load_all(text(name, settings)) if one]


def configuration(settings: Settings, *, finished: bool) -> dict[str, Any]:
    """Return the object that stores, in the cluster, the settings of the lab, and whether its set-up finished."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": topology.SETTINGS,
            "namespace": topology.NAMESPACE,
            "labels": dict(topology.MARK),
        },
        "data": {"settings.json": settings.to_json(), "finished": str(finished).lower()},
    }
