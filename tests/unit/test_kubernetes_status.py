"""What is reported of a lab on a cluster in trouble: its API is a real TLS server, its node a stub."""

import json

import pytest
from tests.unit.api_server import Keys, Server, plainly
from tests.unit.stub_provider import StubNode, StubProvider

from merbridge_lab import sysdump
from merbridge_lab.adapters.command import Result
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import status
from merbridge_lab.labs.kubernetes.managed_lab import ManagedKubernetesLab
from merbridge_lab.labs.kubernetes.settings import Settings
from merbridge_lab.labs.options import Options


@pytest.fixture
def lab(monkeypatch, tmp_path):
    """Return a lab on an API server with these answers; the administrator's certificate ends in so many days."""
    servers = []

    def on(answer, *, days, dataplane="none", node=None):
        keys = Keys(tmp_path, days=days)
        servers.append(Server(keys, answer))
        provider = StubProvider(keys.credentials(servers[-1].port), nodes=[node or StubNode()])
        return ManagedKubernetesLab(provider, Options(dataplane=dataplane))

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
    assert problem.endswith("; merlab down && merlab up")
    assert told["up"] is True, "the cluster is there"
    assert told["workloads"] == []
    assert json.dumps(told)


def test_expired_certificates_do_not_keep_a_sysdump_from_being_written(lab, tmp_path):
    names = sysdump.write(tmp_path / "dump.tar.gz", lab(plainly(401, "Unauthorized"), days=-1))
    assert {"status.json", "doctor.json", "nodes.json"} <= set(names)
    assert (tmp_path / "dump.tar.gz").exists()


def test_a_node_without_tools_does_not_keep_a_sysdump_from_being_written(lab, tmp_path):
    def answer(connection, request):
        if request.startswith("GET /readyz "):
            connection.sendall(b"HTTP/1.1 200 x\r\nContent-Length: 2\r\n\r\nok")
        else:
            plainly(404, "not found")(connection, request)

    def no_tools(argv):
        return Result("", 1 if "command -v nsenter" in argv[-1] else 0, "", "")

    bare = lab(answer, days=1, node=StubNode(execute=no_tools))
    assert status.is_up(bare)
    assert bare.find_node_exec() is None
    assert "last-report.json" in sysdump.write(tmp_path / "dump.tar.gz", bare)


def test_a_lab_whose_parts_cannot_be_looked_at_says_of_each_why(lab):
    refused = lab(plainly(409, "conflict"), days=1, dataplane="merbridge")
    told = status._problems(refused, up=True)
    assert len(told) == 3, told
    assert all("the cluster refuses to get " in one for one in told)


def test_where_the_provider_does_not_answer_it_is_an_error_as_ever(lab, monkeypatch):
    gone = lab(plainly(401, "Unauthorized"), days=1)

    def silent():
        raise LabError("no daemon answers")

    monkeypatch.setattr(gone.provider, "state", silent)
    with pytest.raises(LabError, match="no daemon answers"):
        status.describe(gone)


def test_the_images_of_the_lab_are_named_and_merbridge_only_where_it_is():
    settings = Settings.default()
    ours = settings.images["merbridge"]
    assert ours in status.images(settings, [ours])
    assert ours not in status.images(settings, [])
