"""What removes or changes something for all users of a cluster needs a cluster that merlab made: by type."""

import ast
import re
from pathlib import Path

import pytest
from mypy import api as mypy

import merbridge_lab

SOURCE = Path(merbridge_lab.__file__).parent
ROOT = Path(__file__).parents[2]
HEAD = """
from merbridge_lab.adapters.kubernetes_api import Api
from merbridge_lab.labs.kubernetes import cluster_wide
from merbridge_lab.labs.kubernetes.connection import Access
from merbridge_lab.labs.kubernetes.lab import KubernetesLab
from merbridge_lab.labs.kubernetes.mesh import MeshComponent
from merbridge_lab.labs.kubernetes.provider import ClusterProvider, OwnedCluster, OwningProvider
from merbridge_lab.labs.kubernetes.settings import Settings
from merbridge_lab.labs.options import Options

def use(provider: {provider}, access: Access, api: Api, settings: Settings) -> None:
"""
#: What an owner may do, a statement each, and what mypy says of it for a lent cluster.
USES = {
    "cluster_wide.purge_mesh(provider.owned(), api, settings)": 'has no attribute "owned"',
    "cluster_wide.configure_namespace(provider.owned(), api, settings)": 'has no attribute "owned"',
    "cluster_wide.remove_state(provider.owned())": 'has no attribute "owned"',
    "MeshComponent(access, provider, lambda: [], lambda _: [], keep=True)": "has incompatible type",
    "KubernetesLab(provider, Options())": "has incompatible type",
}
#: What no provider may, whoever it is.
NEVER = {
    "cluster_wide.purge_mesh(provider.state(), api, settings)": "has incompatible type",
    "cluster_wide.remove_state(provider.state().nodes)": "has incompatible type",
}


def complaints(folder, provider, statements):
    """Return what mypy says of each statement with a provider of this type; "" for one that is right."""
    code = HEAD.format(provider=provider) + "".join(f"    {one}\n" for one in statements)
    first = HEAD.count("\n") + 1
    (folder / "use.py").write_text(code)
    words = ["--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary", str(folder / "use.py")]
    told, errors, _ = mypy.run(words)
    assert errors == ""
    said = {int(line): text for line, text in re.findall(r"^.*use\.py:(\d+): error: (.*)$", told, re.MULTILINE)}
    assert all(line >= first for line in said), told
    return {one: said.get(first + number, "") for number, one in enumerate(statements)}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # mypy's paths and its cache are relative


def test_a_lent_cluster_is_refused(tmp_path):
    told = complaints(tmp_path, "ClusterProvider", [*USES, *NEVER])
    for statement, wanted in {**USES, **NEVER}.items():
        assert wanted in told[statement], (statement, told[statement])


def test_an_owned_one_is_taken(tmp_path):
    told = complaints(tmp_path, "OwningProvider", [*USES, *NEVER])
    assert {statement: told[statement] for statement in USES} == dict.fromkeys(USES, "")
    for statement, wanted in NEVER.items():
        assert wanted in told[statement]


def callers(*names):
    """Return the modules that call one of these functions or classes."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
                found.add(str(path.relative_to(SOURCE)))
    return found


def test_only_a_provider_that_makes_clusters_hands_one_out():
    assert callers("OwnedCluster", "provider.OwnedCluster") == {"labs/kind/provider.py"}


def test_istio_and_its_definitions_are_removed_in_one_place():
    assert callers("istioctl.uninstall", "uninstall") == {"labs/kubernetes/cluster_wide.py"}
    naming = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if "customresourced" in path.read_text()}
    assert naming == {"labs/kubernetes/cluster_wide.py"}
