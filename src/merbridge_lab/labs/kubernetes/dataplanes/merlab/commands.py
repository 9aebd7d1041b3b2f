"""What a person types to install the agent, and to switch its trace on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.adapters.command import pasteable
from merbridge_lab.labs.kubernetes import topology
from merbridge_lab.labs.kubernetes.dataplanes.merlab.manifest import MERLAB, NAME, NAMESPACE

if TYPE_CHECKING:
    from merbridge_lab.labs.kubernetes.provider import ClusterProvider
    from merbridge_lab.labs.kubernetes.settings import Settings


def put_in(settings: Settings, provider: ClusterProvider) -> list[str]:
    """Return the commands that load its image, apply its manifest, and recreate the apps."""
    image = settings.images[MERLAB]
    kubectl = f"kubectl --context {provider.context}"
    options = [f"--image=merlab={image}"] if image != type(settings).default().images[MERLAB] else []
    return [
        provider.images.load_command([image]),
        f"{pasteable(['merlab', 'manifests', 'merlab', *options])} | {kubectl} apply -f -",
        f"{kubectl} -n {NAMESPACE} rollout status daemonset {NAME}",
        # The sidecars keep connections that eBPF does not know.
        *(f"{kubectl} rollout restart deployment {spec.name}" for spec in topology.WORKLOADS),
        f"{kubectl} wait --for=condition=Available deployment --all --timeout=120s",
    ]


def debug_on(context: str) -> list[str]:
    """Return the commands that switch the trace on and show the result."""
    return [f"{_agent(context)} debug on", f"{_agent(context)} status"]


def trace(context: str) -> str:
    """Return the command that follows the trace of a node."""
    return f"{_agent(context)} trace"


def _agent(context: str) -> str:
    return f"kubectl --context {context} -n {NAMESPACE} exec ds/{NAME} -- merlab agent"
