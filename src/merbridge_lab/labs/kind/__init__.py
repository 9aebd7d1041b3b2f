"""The kind lab: a cluster that merlab makes with kind, on this machine's Docker. driver.py opens it."""
