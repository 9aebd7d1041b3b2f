"""Changes that all users of a cluster notice. Each takes an OwnedCluster: on a lent cluster, none can be called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab import polling
from merbridge_lab.adapters import istioctl, kubernetes_api
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import manifests, node_exec, topology

if TYPE_CHECKING:
    from merbridge_lab.adapters.kubernetes_api import Api
    from merbridge_lab.labs.kubernetes.provider import OwnedCluster
    from merbridge_lab.labs.kubernetes.settings import Settings

_GONE = 60.0
#: What istioctl leaves in every namespace.
_LEFT_BY_ISTIO = ("istio-ca-root-cert", "istio-ca-crl")


def configure_namespace(owned: OwnedCluster, api: Api, settings: Settings) -> None:  # noqa: ARG001 - the permission
    """Enable sidecar injection in the namespace of the walkthrough, and enforce STRICT mTLS there."""
    for name in manifests.OF_NAMESPACE:
        for document in manifests.objects(name, settings):
            api.apply(document)


def purge_mesh(owned: OwnedCluster, api: Api, settings: Settings) -> None:
    """Remove the lab's objects, Istio with its namespace and its CRDs, and the state on the nodes. Raises LabError."""
    for name in reversed(manifests.APPLIED):
        for document in manifests.objects(name, settings):
            meta = document["metadata"]
            if document["kind"] == "Namespace":
                api.apply({**document, "metadata": {"name": meta["name"]}})  # remove our label
            else:
                api.delete(kubernetes_api.path(document["kind"], meta["name"], meta["namespace"]))
    node_exec.remove(api)
    with polling.progress("istioctl removes Istio"):
        istioctl.uninstall(kubeconfig=api.kubeconfig_file)
    api.delete(kubernetes_api.path("Namespace", topology.ISTIO))
    for name in (topology.SETTINGS, *_LEFT_BY_ISTIO):
        for namespace in api.get("/api/v1/namespaces")["items"]:
            api.delete(kubernetes_api.path("ConfigMap", name, namespace["metadata"]["name"]))
    for crd in api.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]:
        if crd["spec"]["group"].endswith("istio.io"):
            api.delete(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}")
    remove_state(owned)
    gone = polling.poll_until(
        lambda: api.find(kubernetes_api.path("Namespace", topology.ISTIO)) is None,
        timeout=_GONE,
        every=0.5,
        awaiting=f"the namespace {topology.ISTIO} to go",
    )
    if not gone:
        raise LabError(
            f"the namespace {topology.ISTIO} is still there after {_GONE:.0f} s",
            hint="merlab down --keep-cluster",
            id="removal.failed",
        )


def remove_state(owned: OwnedCluster) -> None:
    """Remove what merlab keeps on the nodes. Raises LabError."""
    for node in owned.nodes:
        node.execute(["rm", "-rf", topology.STATE])
