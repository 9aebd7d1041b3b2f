"""What a person types to install Merbridge and to switch its debug output on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from merbridge_lab.adapters import kind_cli
from merbridge_lab.adapters.command import pasteable
from merbridge_lab.labs.kubernetes import topology
from merbridge_lab.labs.kubernetes.dataplanes.merbridge import manifest
from merbridge_lab.labs.kubernetes.dataplanes.merbridge.installation import NAME, NAMESPACE
from merbridge_lab.labs.kubernetes.dataplanes.merbridge.manifest import MERBRIDGE

if TYPE_CHECKING:
    from merbridge_lab.labs.kubernetes.settings import Settings

_ANY = f"kubectl --context {topology.CONTEXT}"
_KUBECTL = f"{_ANY} -n {NAMESPACE}"


def put_in(settings: Settings, mended: str) -> list[str]:
    """Return the commands that recreate the apps, load its image, apply its manifest, with the changes `mended`."""
    image = settings.images[MERBRIDGE]
    options = [f"--merbridge-manifest={settings.merbridge_manifest}"] if settings.merbridge_manifest else []
    options += [f"--image=merbridge={image}"] if image != type(settings).default().images[MERBRIDGE] else []
    get = pasteable(["merlab", "manifests", "merbridge", *options])
    return [
        *(f"{_ANY} rollout restart deployment {spec.name}" for spec in topology.WORKLOADS),
        f"{_ANY} wait --for=condition=Available deployment --all --timeout=120s",
        pasteable(kind_cli.load_argv(topology.CLUSTER, [image])),
        f"{get} | {_ANY} apply -f -",
        *_mend(mended),
        f"{_KUBECTL} rollout status daemonset {NAME}",
        f"{_KUBECTL} logs ds/{NAME}",
    ]


def _mend(mended: str) -> list[str]:
    if mended.startswith(manifest.CGROUP2_PATH):
        return [f"{_KUBECTL} set env daemonset/{NAME} {mended}"]
    return [f"{_KUBECTL} edit daemonset {NAME}  # {mended}"] if mended else []


def add_debug(place: str) -> list[str]:
    """Return the commands that add -d at `place`, wait for the new pod, and show the resulting DaemonSet."""
    change = [{"op": "add", "path": f"/spec/template/spec/containers/0/{place}", "value": "-d"}]
    patch = pasteable(["patch", "daemonset", NAME, "--type", "json", "-p", json.dumps(change)])
    return [
        f"{_KUBECTL} {patch}",
        f"{_KUBECTL} rollout status daemonset {NAME}",
        f"{_KUBECTL} get daemonset {NAME} -o yaml",
    ]
