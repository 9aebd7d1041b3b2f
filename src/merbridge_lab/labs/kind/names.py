"""The names of the kind lab's objects."""

from __future__ import annotations

#: The name of the lab.
LAB = "kind"
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
