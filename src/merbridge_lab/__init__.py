"""merlab: a walkthrough of eBPF in a service mesh that proves each of its claims."""

__version__ = "0.1.0"
