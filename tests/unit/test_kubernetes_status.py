"""What is reported of a kind lab in trouble: its API is a real TLS server, docker and kind replay captured output."""

import json
import os
from pathlib import Path

import pytest
import yaml
from tests.unit.api_server import Keys, Server, plainly

from merbridge_lab import sysdump
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kind import ownership
from merbridge_lab.labs.kubernetes import status, topology
from merbridge_lab.labs.kubernetes.managed_lab import ManagedKubernetesLab
from merbridge_lab.labs.kubernetes.settings import Settings
from merbridge_lab.labs.options import Options

CAPTURED = Path(__file__).parents[1] / "captured" / "kind"
DOCKER = """#!/bin/sh
case "$1 $2" in
"ps "*) echo 5caa3cc94ef5 ;;
"inspect "*) cat "{captured}/inspect.json" ;;
"info "*) cat "{captured}/info.json" ;;
"image inspect") [ -e "{images}" ] && for ref; do :; done && grep -qxF "$ref" "{images}" && exit
    echo "Error: No such image: $ref" >&2; exit 1 ;;
"network inspect") echo "Error: No such network: $3" >&2; exit 1 ;;
*) echo "Error: no such thing" >&2; exit 1 ;;
esac
"""
KIND = """#!/bin/sh
case "$1 $2" in
"get kubeconfig") cat "{kubeconfig}" ;;
*) echo "kind v0.33.0 x" ;;
esac
"""


@pytest.fixture
def lab(monkeypatch, tmp_path):
    """Return a lab on an API server with these answers; the administrator's certificate ends in so many days."""
    servers = []

    def on(answer, *, days, dataplane="none"):
        keys = Keys(tmp_path, days=days)
        servers.append(Server(keys, answer))
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(keys.kubeconfig(servers[-1].port)))
        return ManagedKubernetesLab(Options(dataplane=dataplane))

    paths = {"captured": CAPTURED, "kubeconfig": tmp_path / "kubeconfig", "images": tmp_path / "images"}
    for name, text in (("docker", DOCKER), ("kind", KIND)):
        (tmp_path / name).write_text(text.format(**paths))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("no_proxy", "")
    yield on
    for server in servers:
        server.close()


def test_expired_certificates_are_a_problem_and_status_goes_on(lab):
    expired = lab(plainly(401, "Unauthorized"), days=-1)
    with pytest.raises(LabError, match="expired"):
        expired.api().ready()
    told = status.describe(expired)
    (problem,) = told["problems"]
    assert problem.startswith("the certificates of the cluster expired on ")
    assert problem.endswith("; merlab down --lab kind && merlab up --lab kind")
    assert told["up"] is True, "the cluster is there"
    assert told["workloads"] == []
    assert json.dumps(told)


def test_expired_certificates_do_not_keep_a_sysdump_from_being_written(lab, tmp_path):
    names = sysdump.write(tmp_path / "dump.tar.gz", lab(plainly(401, "Unauthorized"), days=-1))
    assert {"status.json", "doctor.json", "nodes.json", "docker.json"} <= set(names)
    assert (tmp_path / "dump.tar.gz").exists()


def test_a_node_without_tools_does_not_keep_a_sysdump_from_being_written(lab, tmp_path):
    def answer(connection, request):
        if request.startswith("GET /readyz "):
            connection.sendall(b"HTTP/1.1 200 x\r\nContent-Length: 2\r\n\r\nok")
        else:
            plainly(404, "not found")(connection, request)

    bare = lab(answer, days=1)
    assert status.is_up(bare)
    assert bare.find_node_exec() is None
    assert "last-report.json" in sysdump.write(tmp_path / "dump.tar.gz", bare)


def test_a_lab_whose_parts_cannot_be_looked_at_says_of_each_why(lab):
    refused = lab(plainly(409, "conflict"), days=1, dataplane="merbridge")
    told = status._problems(refused, up=True)
    assert len(told) == 3, told
    assert all("the cluster refuses to get " in one for one in told)


def test_without_docker_it_is_an_error_as_ever(lab, tmp_path):
    gone = lab(plainly(401, "Unauthorized"), days=1)
    (tmp_path / "docker").write_text("#!/bin/sh\necho Cannot connect to the Docker daemon >&2; exit 1\n")
    with pytest.raises(LabError, match="no Docker daemon answers"):
        status.describe(gone)


def test_what_stays_with_docker_is_named_and_merbridge_only_where_it_was(lab, tmp_path):
    lab(plainly(401, ""), days=1)
    settings = Settings.default()
    ours = settings.images["merbridge"]
    (tmp_path / "images").write_text(f"{settings.kind_image}\n{ours}\n")
    with_it = status.pulled(settings, [ours])
    assert with_it[0].endswith(f"docker image rm {settings.kind_image} {ours}")
    without = status.pulled(settings, [])
    assert without[0].endswith(f"docker image rm {settings.kind_image}")
    (tmp_path / "images").unlink()
    assert status.pulled(settings, [ours]) == []


def test_the_stand_ins_are_taken_for_merlabs_cluster(lab):
    lab(plainly(401, ""), days=1)
    (node,) = ownership.nodes()
    assert ownership.are_ours([node])
    assert node.name == f"{topology.CLUSTER}-control-plane"
