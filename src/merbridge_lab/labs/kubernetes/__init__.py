"""A lab on Kubernetes: what is the same whoever made the cluster."""
