"""The names of the kind lab, and where its objects are."""

from __future__ import annotations

from dataclasses import dataclass

#: The cluster of the walkthrough.
CLUSTER = "merbridge"
CONTEXT = f"kind-{CLUSTER}"
#: Its node, which is a container, as kind names it.
NODE = f"{CLUSTER}-control-plane"
#: A mount that merlab's cluster has and no other: data/manifests/kind.yaml.
MARK = "/kind/made-by-merlab"
#: The Docker network of the node, and the label that marks its owner.
NETWORK = "merlab"
NETWORK_LABEL = "io.merlab.cluster"

NAMESPACE = "default"
ISTIO = "istio-system"
SIDECAR = "istio-proxy"
#: A ConfigMap that holds the settings of the lab.
SETTINGS = "merlab"

#: A pod that enters others if the node has no tools for it, and its namespace.
HELPER = "merlab-helper"
HELPERS = "kube-system"

#: On the node, on its volume: what a flush removed, and what people may look at.
STATE = "/var/lib/merlab"


@dataclass(frozen=True)
class WorkloadSpec:
    """A workload of the walkthrough: its Deployment's name, the labels of its pods, the container of its app."""

    name: str
    selector: str
    container: str


SLEEP = WorkloadSpec("sleep", "app=sleep", "sleep")
SERVERS = tuple(
    WorkloadSpec(f"helloworld-{version}", f"app=helloworld,version={version}", "helloworld") for version in ("v1", "v2")
)
WORKLOADS = (SLEEP, *SERVERS)
