"""What kind's provider says of a cluster: docker and kind replay captured output."""

import os
from pathlib import Path

import pytest

from merbridge_lab.errors import LabError
from merbridge_lab.labs.kind import names
from merbridge_lab.labs.kind.provider import KindProvider
from merbridge_lab.labs.options import Options

CAPTURED = Path(__file__).parents[1] / "captured" / "kind"
DOCKER = """#!/bin/sh
case "$1 $2" in
"ps "*) echo 5caa3cc94ef5 ;;
"inspect "*) case " $* " in *State.Pid*) echo 1 ;; *) cat "{inspect}" ;; esac ;;
"info "*) cat "{captured}/info.json" ;;
"image inspect") [ -e "{images}" ] && for ref; do :; done && grep -qxF "$ref" "{images}" && exit
    echo "Error: No such image: $ref" >&2; exit 1 ;;
"network inspect") echo "Error: No such network: $3" >&2; exit 1 ;;
*) echo "Error: no such thing" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Put a docker on PATH that knows merlab's cluster."""
    (tmp_path / "inspect.json").write_text((CAPTURED / "inspect.json").read_text())
    paths = {"captured": CAPTURED, "images": tmp_path / "images", "inspect": tmp_path / "inspect.json"}
    (tmp_path / "docker").write_text(DOCKER.format(**paths))
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def change(machine, old, new):
    file = machine / "inspect.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_merlabs_cluster_is_up_and_owned(machine):
    provider = KindProvider(Options())
    assert provider.state().up
    provider.require_up()
    owned = provider.owned()
    assert [node.name for node in owned.nodes] == [names.NODE]
    assert names.MARK in owned.evidence
    assert provider.exists()
    assert machine


def test_a_foreign_cluster_of_that_name_is_neither_used_nor_owned(machine):
    change(machine, names.MARK, "/kind/product_name2")
    provider = KindProvider(Options())
    assert provider.state().nodes
    assert not provider.state().up
    for ask in (provider.owned, provider.require_up):
        with pytest.raises(LabError, match="merlab did not make it: it stays untouched"):
            ask()


def test_a_node_that_is_stopped_is_named(machine):
    change(machine, '"Status": "running"', '"Status": "exited"')
    provider = KindProvider(Options())
    assert provider.state().usable
    assert not provider.state().running
    with pytest.raises(LabError, match=f"the node {names.NODE} of the kind lab does not run"):
        provider.require_up()


def test_a_node_on_another_kernel_is_told_from_one_on_this(machine):
    (node,) = KindProvider(Options()).state().nodes
    if os.geteuid() != 0:
        with pytest.raises(PermissionError):
            node.init_pid()
        return
    with pytest.raises(LabError, match="its Docker is elsewhere") as error:
        node.init_pid()  # PID 1 here is not the node's
    assert "run merlab where Docker runs" in error.value.hint
    assert machine


def test_what_one_types_to_enter_the_node():
    node = KindProvider(Options()).offline_node()
    assert node.shell_command(["df", "/var"]) == f"docker exec {names.NODE} df /var"
    assert node.argv(["sh"]) == ["docker", "exec", "-i", "-t", names.NODE, "sh"]
    assert node.argv(["sh"], terminal=False) == ["docker", "exec", "-i", names.NODE, "sh"]


def test_what_stays_with_docker_is_named(machine):
    (machine / "images").write_text("a:1\nb:2\n")
    provider = KindProvider(Options())
    assert provider.stays(["a:1", "c:3", "b:2"]) == [
        "its images stay with Docker; this removes them: docker image rm a:1 b:2"
    ]
    (machine / "images").unlink()
    assert provider.stays(["a:1"]) == []
    (kept,) = KindProvider(Options(keep_cluster=True)).stays([])
    assert kept.startswith(f"the cluster {names.CLUSTER} stays")


def test_without_docker_it_is_an_error(machine):
    (machine / "docker").write_text("#!/bin/sh\necho Cannot connect to the Docker daemon >&2; exit 1\n")
    with pytest.raises(LabError, match="no Docker daemon answers"):
        KindProvider(Options()).state()


def test_its_parts_of_a_sysdump(machine):
    parts = KindProvider(Options()).dump()
    assert set(parts) == {"docker.json", "nodes.json"}
    assert parts["nodes.json"]()[0]["name"] == names.NODE
    (machine / "state" / "merlab").mkdir(parents=True)
    (machine / "state" / "merlab" / f"kind-{names.CLUSTER}-create.log").write_text("why")
    assert KindProvider(Options()).dump()["kind-create.log"]() == "why"
