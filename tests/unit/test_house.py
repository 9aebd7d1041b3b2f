"""What import-linter's contracts do not hold: no cycle of modules, none too long, and one name for one role."""

from __future__ import annotations

import ast
import graphlib
import re
from collections import defaultdict
from pathlib import Path

from tests.unit.messages_in_source import messages

import merbridge_lab
from merbridge_lab.labs.kubernetes import dataplanes

SOURCE = Path(merbridge_lab.__file__).parent
LONGEST = 300
#: Names that several modules share, each with the one role that they have in common.
ROLES = {
    "bench_pods": "sets of pods for a benchmark: those of each lab",
    "commands": "what a person would type",
    "components": "parts of a lab: what they are, and the checks of them",
    "control_pods": "pods that the dataplane does not serve",
    "dataplane": "what intercepts in the kernel: a lab's, upstream's, and the checks of it",
    "discovery": "which endpoints there are: the protocol, and the labs that keep to it",
    "driver": "whether a lab of one kind is up, what it needs, and how it is opened",
    "evidence": "what was seen, with its source",
    "health": "is a dataplane as it should be?",
    "host": "this machine: what it offers, and what a lab has of it",
    "lab": "the Lab protocol, and the labs that keep to it",
    "managed_lab": "the ManagedLab protocol, and the labs that keep to it",
    "manifest": "the objects that install a dataplane on a cluster",
    "mesh": "pods with their sidecars, and the checks of them",
    "model": "the values of a subject: steps and checks, and what a benchmark measures",
    "node": "a machine, or a namespace, that pods run on",
    "preflight": "what a dataplane on a cluster needs, checked before it is installed",
    "provider": "who brings a cluster: the protocols, and kind's",
    "rollout": "wait for pods until they are ready, or hopeless",
    "rules": "iptables rules of a pod, and the checks of them",
    "status": "the state of a lab, described",
    "strategy": "what a dataplane brings to a lab on a cluster",
    "tcp_bytes": "what went by TCP",
    "topology": "what a lab is made of, as data",
    "trace": "lines of a dataplane's trace, and the checks of them",
    "workload": "a pod as the steps see it",
}


def imports():
    """Return, by module, the modules of merlab that it imports, wherever in it: those for type checkers count, too."""
    names = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = path
    found = {}
    for name, path in names.items():
        asked = {
            each
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("merbridge_lab")
            for alias in node.names
            for each in (f"{node.module}.{alias.name}", node.module)
        }
        known = asked & names.keys()
        # Of a package, what is imported from it is meant.
        found[name] = {each for each in known if not any(other.startswith(f"{each}.") for other in known)}
    return found


def test_no_modules_import_each_other_in_a_circle():
    """Who needs a type of its owner, knows its owner."""
    graphlib.TopologicalSorter(imports()).prepare()


def test_no_module_knows_a_dataplane_of_a_cluster_but_its_own_package():
    """They are found by name: a third one is one package."""
    found = {
        (name, package)
        for name, known in imports().items()
        for package in (f"{dataplanes.__name__}.{each}" for each in dataplanes.names())
        if not name.startswith(package) and any(each.startswith(package) for each in known)
    }
    assert found == set()


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


#: In a text: the option --lab, or the name of a lab or of what one provider runs on.
_OF_A_LAB = re.compile(r"--lab\b|\bembedded\b|\bkind\b(?! \{)|\bDocker\b|\bdocker\b(?!\.io)")
#: What is filled in, and an option of the command line that has a lab's name in it.
_NOT_READ = re.compile(r"\{[^{}]*\}|--kind-image")
#: The adapters of one provider's own commands, which name these.
_OF_COMMANDS = ("adapters/docker", "adapters/kind_")


def test_no_text_of_an_adapter_or_of_kubernetes_names_a_lab():
    """The hints module adds the lab that a call is about; what only a provider knows, the provider says."""
    found = []
    for message in messages():
        path, _, text = message.partition(": ")
        if not path.startswith(("adapters/", "labs/kubernetes/")):
            continue
        words = "--lab" if path.startswith(_OF_COMMANDS) else _OF_A_LAB.pattern
        if re.search(words, _NOT_READ.sub("", text).replace("of netlink's kind", "")):
            found.append(message)
    assert found == []
