"""A dataplane that is one package: it records what a lab asks of it."""
