"""The DaemonSet in the cluster: as it was applied, as it is now, and its one pod."""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters import kubernetes_api
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import topology
from merbridge_lab.labs.kubernetes.dataplanes import daemonsets
from merbridge_lab.labs.kubernetes.dataplanes.merbridge import manifest
from merbridge_lab.labs.kubernetes.dataplanes.merbridge.manifest import MERBRIDGE
from merbridge_lab.merbridge import mbctl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.adapters.kubernetes_api import Api
    from merbridge_lab.labs.kubernetes.connection import Access

Object = dict[str, Any]

#: What merlab records on the DaemonSet: its form when applied, its manifest, what was repaired, whether -d is merlab's,
#: and what else was applied with it.
APPLIED, FROM, MENDED, DEBUG, OBJECTS = (
    f"merlab.io/{name}" for name in ("applied", "manifest", "mended", "debug", "objects")
)
_PLACE = re.compile(r"/apis?/[A-Za-z0-9./:_-]+")
NAME, NAMESPACE = MERBRIDGE, topology.ISTIO
PATH = kubernetes_api.path("DaemonSet", NAME, NAMESPACE)


def is_ours(daemonset: Object) -> bool:
    """Report whether merlab installed it."""
    return bool(daemonsets.noted(daemonset, APPLIED))


def paths(objects: Sequence[Object]) -> str:
    """Return, as a note, where in the API the objects are that belong to the DaemonSet; a namespace stays."""
    return json.dumps([_path(one) for one in _beside(objects)])


def _beside(objects: Sequence[Object]) -> list[Object]:
    return [one for one in objects if one["kind"] not in ("DaemonSet", "Namespace")]


def _path(one: Object) -> str:
    meta = one["metadata"]
    return kubernetes_api.path(one["kind"], meta["name"], meta.get("namespace", NAMESPACE))


def require_own(api: Api, objects: Sequence[Object]) -> None:
    """Raise LabError for an object that must be applied, but exists already without merlab's label.

    Applying would change it, and `down` would remove it.
    """
    for one in _beside(objects):
        there = api.find(_path(one))
        if there is not None and not daemonsets.is_marked(there):
            kind, name = one["kind"], one["metadata"]["name"]
            place = f" -n {there['metadata']['namespace']}" if there["metadata"].get("namespace") else ""
            raise LabError(
                f"there is a {kind} {name} already, and merlab did not make it: it stays untouched",
                hint=f"kubectl{place} delete {kind.lower()} {name}  # if you do not need it",
                id="merbridge.foreign",
            )


def objects_of(daemonset: Object | None) -> Sequence[str]:
    """Read that note; if there is none, return where merlab's own manifest has its objects."""
    roles = [kubernetes_api.path(kind, NAME) for kind in ("ClusterRoleBinding", "ClusterRole")]
    own = [*roles, kubernetes_api.path("ServiceAccount", NAME, NAMESPACE)]
    try:
        told = json.loads(daemonsets.noted(daemonset, OBJECTS) or "null") if daemonset and is_ours(daemonset) else None
    except (ValueError, RecursionError):
        return own
    # Anybody may write the note: what is not a path in the API is never requested.
    if not isinstance(told, list) or not all(isinstance(one, str) and _PLACE.fullmatch(one) for one in told):
        return own
    return told


def as_applied(daemonset: Object) -> Object:
    """Return it as merlab applied it, without its notes."""
    return dict(json.loads(daemonsets.noted(daemonset, APPLIED)))


def with_notes(daemonset: Object, notes: dict[str, str]) -> Object:
    """Return it with merlab's notes, as it is applied."""
    told = copy.deepcopy(daemonset)
    told["metadata"].setdefault("annotations", {}).update({**notes, APPLIED: json.dumps(daemonset, sort_keys=True)})
    return told


def debug(daemonset: Object) -> bool:
    """Report whether its mbctl is told to write trace lines."""
    return mbctl.debug(manifest.main(daemonset))


def edits(daemonset: Object) -> list[str]:
    """Describe how it differs from what merlab applied; anybody may set the debug flag."""
    pair = [copy.deepcopy(each) for each in (as_applied(daemonset), daemonset)]
    for each in pair:
        manifest.set_debug(each, on=False)
    wanted, live = pair
    return daemonsets.differences(wanted["spec"], live["spec"], "spec")


def others(api: Api) -> list[str]:
    """List the DaemonSets that intercept connections but are not the Merbridge that merlab installed."""
    found = api.find(PATH)
    return daemonsets.intercepting(api, but=(NAMESPACE, NAME) if found and is_ours(found) else ("", ""))


def there(access: Access) -> bool:
    """Report whether merlab's Merbridge is in the cluster."""
    found = access.api().find(PATH)
    return found is not None and is_ours(found)


def foreign(name: str) -> LabError:
    """Return the error for a Merbridge that merlab did not install."""
    namespace, _, daemonset = name.partition("/")
    return LabError(
        f"there is a Merbridge already, the DaemonSet {name}, and merlab did not install it: it stays untouched",
        hint=f"kubectl -n {namespace} delete daemonset {daemonset}  # if you do not need it",
        id="merbridge.foreign",
    )
