"""The objects of a benchmark in the cluster: a namespace for each set of pods, found by its name and merlab's label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from merbridge_lab import polling, templates
from merbridge_lab.adapters import kubernetes_api
from merbridge_lab.bench import scenarios
from merbridge_lab.bench.pod_sets import DIRECT_SLOT, SLOTS
from merbridge_lab.errors import LabError
from merbridge_lab.labs import sidecar_counts
from merbridge_lab.labs.kubernetes import diagnostics, pods
from merbridge_lab.labs.kubernetes.settings import DATA
from merbridge_lab.labs.kubernetes.topology import MARK, WorkloadSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from merbridge_lab.adapters.kubernetes_api import Api
    from merbridge_lab.labs.kubernetes.connection import Access
    from merbridge_lab.labs.kubernetes.pods import Pod
    from merbridge_lab.labs.kubernetes.settings import Settings

#: slot → its namespace.
NAMESPACES = {slot: f"merlab-bench-{slot.lower()}" for slot in (*SLOTS, DIRECT_SLOT)}
CLIENT = WorkloadSpec("bench-client", "app=bench-client", "app")
SERVER = WorkloadSpec("bench-server", "app=bench-server", "app")
HTTP_PORT, BULK_PORT, UNREAD_PORT = 5000, 9000, 9001
#: Seconds for the pods to be ready, for an account that the cluster makes by itself, and for namespaces to go.
_READY, _ACCOUNT, _GONE = 90.0, 20.0, 60.0


def documents(slot: str, settings: Settings) -> list[dict[str, Any]]:
    """Return the objects of one set."""
    folder = DATA / "manifests"
    bodies = {path: f"/bodies/{size}" for path, size in scenarios.BODIES.items()}
    written = [f"head -c {size} /dev/zero | tr '\\0' m >/bodies/{size}" for size in scenarios.BODIES.values()]
    start = "exec envoy --config-path /server/server.yaml --disable-hot-restart --concurrency 2 --log-level warning"
    server = (DATA / "envoy/bench_server.yaml.j2").read_text(encoding="utf-8")
    largest = max(scenarios.BODIES.values())
    text = templates.render(
        (folder / "bench.yaml.j2").read_text(encoding="utf-8"),
        namespace=NAMESPACES[slot],
        meshed=slot != DIRECT_SLOT,
        images=settings.images,
        proxy=settings.proxy_image,
        server=templates.render(server, port=HTTP_PORT, bodies=bodies, largest=largest),
        command=" && ".join([*written, start]),
        statistics=sidecar_counts.NAMES,
        http=HTTP_PORT,
        bulk=BULK_PORT,
        unread=UNREAD_PORT,
    )
    return [one for one in yaml.safe_load_all(text) if one]


def create(access: Access, slots: Iterable[str]) -> dict[str, tuple[Pod, Pod]]:
    """Create these sets, and return client and server of each when they are ready. Raises LabError."""
    api, settings = access.api(), access.settings()
    everything = {slot: documents(slot, settings) for slot in slots}
    for first, *_rest in everything.values():
        api.apply(first)
    for slot, (_first, *rest) in everything.items():
        _await_account(api, NAMESPACES[slot])
        for document in rest:
            api.apply(document)
    return _ready(access, list(everything))


def _await_account(api: Api, namespace: str) -> None:
    """Wait for the account that each pod of a namespace has. Raises LabError."""
    where = kubernetes_api.path("ServiceAccount", "default", namespace)
    awaiting = f"the service account of the namespace {namespace}"
    if not polling.poll_until(lambda: api.find(where) is not None, timeout=_ACCOUNT, every=0.1, awaiting=awaiting):
        raise LabError(f"{awaiting}: not within {_ACCOUNT:g} s", hint="merlab status", id="pod.not_ready")


def _ready(access: Access, slots: list[str]) -> dict[str, tuple[Pod, Pod]]:
    api = access.api()
    told: dict[str, Mapping[str, Any] | None] = {}

    def ready() -> bool:
        for slot in slots:
            for spec in (CLIENT, SERVER):
                where = kubernetes_api.path("Pod", spec.name, NAMESPACES[slot])
                told[f"{slot}/{spec.name}"] = api.find(where)
        return all(each is not None and pods.read(dict(each)).ready for each in told.values())

    if not polling.poll_until(ready, timeout=_READY, every=0.3, awaiting="the bench pods to be ready"):
        there = [dict(each) for each in told.values() if each is not None]
        seen = diagnostics.diagnose(there, _READY, access.provider.images, now=True)
        events = "".join(diagnostics.told(api.events(NAMESPACES[slot])) for slot in slots)
        why = f": {seen.what}" if seen else ""
        what = f"the bench pods were not ready within {_READY:.0f} s{why}"
        raise LabError(what, hint="merlab status", stderr=events or None, id="pod.not_ready")
    found = {name: pods.read(dict(each)) for name, each in told.items() if each is not None}
    return {slot: (found[f"{slot}/{CLIENT.name}"], found[f"{slot}/{SERVER.name}"]) for slot in slots}


def address(api: Api, slot: str) -> str:
    """Return the address of the service of a set. Raises LabError."""
    return str(api.get(kubernetes_api.path("Service", SERVER.name, NAMESPACES[slot]))["spec"]["clusterIP"])


def opt_out(api: Api, slot: str, *, out: bool) -> None:
    """Set or remove the label by which the namespace of a set opts out of merlab's dataplane. Raises LabError."""
    label = "none" if out else "merlab"
    api.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": NAMESPACES[slot],
                "labels": {
                    **MARK,
                    "merlab.dev/dataplane": label,
                    "istio-injection": "disabled" if slot == DIRECT_SLOT else "enabled",
                },
            },
        }
    )


def remove(api: Api) -> list[str]:
    """Remove all sets, also those of a killed merlab, and wait until they are gone; return their namespaces.

    Raise LabError, with nothing removed, if a namespace of such a name is not merlab's.
    """
    found = {name: api.find(kubernetes_api.path("Namespace", name)) for name in NAMESPACES.values()}
    there = {name: each for name, each in found.items() if each is not None}
    for name, namespace in there.items():
        if not (namespace["metadata"].get("labels") or {}).items() >= MARK.items():
            raise LabError(
                f"the namespace {name} is not merlab's, and a benchmark needs that name",
                hint=f"kubectl describe namespace {name}",
                id="namespace.foreign",
            )
    for name in there:
        for spec in (CLIENT, SERVER):
            api.delete(kubernetes_api.path("Pod", spec.name, name), grace=0)
        api.delete(kubernetes_api.path("Namespace", name))

    def is_gone() -> bool:
        return all(api.find(kubernetes_api.path("Namespace", name)) is None for name in there)

    if not polling.poll_until(is_gone, timeout=_GONE, every=0.2, awaiting="the namespaces of the bench pods to go"):
        what = f"namespaces of bench pods are still there after {_GONE:.0f} s"
        raise LabError(what, hint=f"kubectl get namespace {' '.join(there)}", id="removal.failed")
    return list(there)
