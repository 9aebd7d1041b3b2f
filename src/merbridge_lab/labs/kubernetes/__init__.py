"""A lab on Kubernetes: everything that does not depend on who created the cluster."""
