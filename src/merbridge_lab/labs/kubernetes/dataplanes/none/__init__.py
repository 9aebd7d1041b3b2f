"""No dataplane: the rules send connections to the sidecars."""
