"""What the lab consists of in a cluster: namespaces, workloads, names of its objects, and its files on a node."""

from __future__ import annotations

from dataclasses import dataclass

NAMESPACE = "default"
ISTIO = "istio-system"
SIDECAR = "istio-proxy"
#: Where the servers of the walkthrough listen.
PORT = 5000
#: A ConfigMap that holds the settings of the lab.
SETTINGS = "merlab"

#: A pod that enters others if the node has no tools for it, and its namespace.
HELPER = "merlab-helper"
HELPERS = "kube-system"

#: On the node, on its volume: what a flush removed, and what people may look at.
STATE = "/var/lib/merlab"
#: The label of everything that merlab applied.
MARK = {"app.kubernetes.io/managed-by": "merlab"}


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
