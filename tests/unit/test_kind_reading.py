"""What the kind lab parses of Docker's output, captured from a real one."""

import json
from pathlib import Path

import pytest

from merbridge_lab.adapters import docker, kind_cli
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kind import names, ownership

CAPTURED = Path(__file__).parents[1] / "captured" / "kind"


def captured(name):
    return json.loads((CAPTURED / f"{name}.json").read_text())


def test_the_engine():
    engine = docker.read_engine(captured("info"))
    assert engine.version == "20.10.24+dfsg1"
    assert (engine.cgroup_version, engine.rootless, engine.cpus) == ("1", False, 2)


@pytest.mark.parametrize(
    "told",
    [
        {"ServerErrors": ["Cannot connect to the Docker daemon at unix:///x.sock. Is the docker daemon running?"]},
        {"ServerVersion": ""},
    ],
)
def test_an_engine_that_does_not_answer_is_an_error_although_docker_info_exits_with_0(told):
    with pytest.raises(LabError, match="no Docker daemon answers"):
        docker.read_engine(told)


def test_the_mark_is_seen_on_the_container():
    (node,) = found = docker.read_containers(captured("inspect"))
    assert (node.name, node.running) == ("merbridge-control-plane", True)
    assert node.labels[kind_cli.LABEL] == names.CLUSTER
    assert ownership.are_ours(found)


def test_without_the_mark_a_cluster_is_foreign():
    told = captured("inspect")
    told[0]["Mounts"] = [mount for mount in told[0]["Mounts"] if mount["Destination"] != names.MARK]
    assert not ownership.are_ours(docker.read_containers(told))
    assert not ownership.are_ours([])
    assert not ownership.are_ours(docker.read_containers([*captured("inspect"), *told])), "all nodes, or none"
