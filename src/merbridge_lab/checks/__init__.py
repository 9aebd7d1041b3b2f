"""The claims of the walkthrough as predicates, written once and used by `up`, `step` and `verify`.

A new check goes into the module of its subject here, and into `verify` of the step that makes the claim (steps/).
docs/contributing.md shows one.
"""
