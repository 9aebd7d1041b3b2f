"""merlab's own dataplane on a cluster: one agent a node, which a DaemonSet brings."""
