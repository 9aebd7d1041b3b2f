"""Rules that import-linter's contracts do not cover: no cycle of modules, none too long, and one name for one role."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import grimp

import merbridge_lab

SOURCE = Path(merbridge_lab.__file__).parent
LONGEST = 300
#: Names that several modules share, each with the one role that they have in common.
ROLES = {
    "commands": "what a person would type",
    "components": "parts of a lab: what they are, and the checks of them",
    "control_pods": "pods that the dataplane does not serve",
    "dataplane": "what intercepts in the kernel: a lab's, upstream's, and the checks of it",
    "evidence": "what was seen, with its source",
    "health": "is a dataplane as it should be?",
    "host": "this machine: what it offers, and what a lab has of it",
    "lab": "the Lab protocol, and the labs that keep to it",
    "managed_lab": "the ManagedLab protocol, and the labs that keep to it",
    "mesh": "pods with their sidecars, and the checks of them",
    "rollout": "wait for pods until they are ready, or hopeless",
    "rules": "iptables rules of a pod, and the checks of them",
    "status": "the state of a lab, described",
    "tcp_bytes": "what went by TCP",
    "topology": "what a lab is made of, as data",
    "trace": "lines of a dataplane's trace, and the checks of them",
    "workload": "a pod as the steps see it",
}


def test_no_modules_import_each_other_in_a_circle():
    """Imports for type checkers count, too: a module that needs a type of its owner depends on its owner."""
    graph = grimp.build_graph("merbridge_lab", exclude_type_checking_imports=False, cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    left = {module: set(found) for module, found in imported.items()}
    while ends := [module for module, found in left.items() if not found & left.keys()]:
        for module in ends:
            del left[module]
    # What is left imports a cycle, or is in one.
    while starts := [module for module in left if not any(module in found for found in left.values())]:
        for module in starts:
            del left[module]
    assert sorted(left) == []


def test_no_module_is_too_long_to_be_read_at_once():
    lengths = {path.relative_to(SOURCE): len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    assert {str(path): length for path, length in lengths.items() if length > LONGEST} == {}


def test_modules_share_a_name_only_where_they_have_one_role():
    found = defaultdict(list)
    for path in SOURCE.rglob("*.py"):
        if not path.stem.startswith("__"):
            found[path.stem].append(str(path.relative_to(SOURCE)))
    assert {name: paths for name, paths in found.items() if len(paths) > 1 and name not in ROLES} == {}
    assert [name for name in ROLES if len(found[name]) < 2] == []
