"""The claims of the walkthrough as predicates, written once and used by `up`, `step` and `verify`.

One module a subject. docs/contributing.md says how to add a check.
"""
