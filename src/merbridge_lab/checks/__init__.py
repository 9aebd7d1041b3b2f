"""The claims of the walkthrough as predicates, written once and used by `up`, `step` and `verify`."""
