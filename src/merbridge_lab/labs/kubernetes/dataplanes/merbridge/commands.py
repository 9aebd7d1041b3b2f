"""What a person types to install Merbridge and to switch its debug output on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from merbridge_lab.adapters.command import pasteable
from merbridge_lab.labs.kubernetes import topology
from merbridge_lab.labs.kubernetes.dataplanes.merbridge import manifest
from merbridge_lab.labs.kubernetes.dataplanes.merbridge.installation import NAME, NAMESPACE
from merbridge_lab.labs.kubernetes.dataplanes.merbridge.manifest import MERBRIDGE

if TYPE_CHECKING:
    from merbridge_lab.labs.kubernetes.provider import ClusterProvider
    from merbridge_lab.labs.kubernetes.settings import Settings


def put_in(settings: Settings, provider: ClusterProvider, mended: str) -> list[str]:
    """Return the commands that recreate the apps, load its image, apply its manifest, with the changes `mended`."""
    image = settings.images[MERBRIDGE]
    kubectl = f"kubectl --context {provider.context}"
    inside = f"{kubectl} -n {NAMESPACE}"
    options = [f"--merbridge-manifest={settings.merbridge_manifest}"] if settings.merbridge_manifest else []
    options += [f"--image=merbridge={image}"] if image != type(settings).default().images[MERBRIDGE] else []
    get = pasteable(["merlab", "manifests", "merbridge", *options])
    return [
        *(f"{kubectl} rollout restart deployment {spec.name}" for spec in topology.WORKLOADS),
        f"{kubectl} wait --for=condition=Available deployment --all --timeout=120s",
        provider.images.load_command([image]),
        f"{get} | {kubectl} apply -f -",
        *_mend(inside, mended),
        f"{inside} rollout status daemonset {NAME}",
        f"{inside} logs ds/{NAME}",
    ]


def _mend(kubectl: str, mended: str) -> list[str]:
    if mended.startswith(manifest.CGROUP2_PATH):
        return [f"{kubectl} set env daemonset/{NAME} {mended}"]
    return [f"{kubectl} edit daemonset {NAME}  # {mended}"] if mended else []


def add_debug(place: str, context: str) -> list[str]:
    """Return the commands that add -d at `place`, wait for the new pod, and show the resulting DaemonSet."""
    kubectl = f"kubectl --context {context} -n {NAMESPACE}"
    change = [{"op": "add", "path": f"/spec/template/spec/containers/0/{place}", "value": "-d"}]
    patch = pasteable(["patch", "daemonset", NAME, "--type", "json", "-p", json.dumps(change)])
    return [
        f"{kubectl} {patch}",
        f"{kubectl} rollout status daemonset {NAME}",
        f"{kubectl} get daemonset {NAME} -o yaml",
    ]
