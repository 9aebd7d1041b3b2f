"""The agent: one process on each node of a cluster, which has the dataplane serve the mesh's pods there.

It finds the pods on the node itself, enrols each by proof, and leaves to Istio's rules whatever it does not know.
"""
