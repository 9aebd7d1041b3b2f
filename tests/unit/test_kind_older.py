"""The kind lab of an older merlab: its ConfigMap is taken over, or refused in a sentence with the one command.

tests/captured/kind/settings-aaab070.json has what that commit wrote; the real client reads it from the API server of
tests/unit/api_server.py.
"""

import json
from pathlib import Path

import pytest
from tests.unit.api_server import Keys, Server
from tests.unit.stub_provider import StubNode, StubProvider

from merbridge_lab.adapters import kubernetes_api
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import connection, manifests, topology
from merbridge_lab.labs.kubernetes.settings import Settings
from merbridge_lab.labs.options import Options

OLDER = json.loads((Path(__file__).parents[1] / "captured/kind/settings-aaab070.json").read_text())


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Return the connection to a cluster whose one ConfigMap a test defines, with these options."""
    monkeypatch.setenv("no_proxy", "example.com")  # an Api adds its cluster to it
    servers = []

    def up(configmap, **options):
        def answer(connection, request):
            is_it = request.split()[1].startswith(kubernetes_api.path("ConfigMap", topology.SETTINGS))
            told = json.dumps(configmap if is_it else {"kind": "Status", "message": "not there"}).encode()
            status = b"200 OK" if is_it else b"404 Not Found"
            connection.sendall(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(told), told))

        keys = Keys(tmp_path)
        servers.append(Server(keys, answer))
        node = StubNode(image="kindest/node:v1.36.1")
        provider = StubProvider(keys.credentials(servers[-1].port), nodes=[node])
        return connection.Access(provider, Options(**options))

    yield up
    for each in servers:
        each.close()


@pytest.mark.parametrize("which", OLDER)
def test_what_an_older_merlab_wrote_is_taken_over(lab, which):
    way = lab(OLDER[which])
    wrote = json.loads(OLDER[which]["data"]["settings.json"])
    kept = way.kept()
    assert way.setup_complete() is (which != "cut short")
    now = json.loads(kept.to_json())
    assert now["images"].pop("merlab") == Settings.default().images["merlab"], "what it did not know yet"
    assert {**now, "kubeconfig": wrote["kubeconfig"]} == wrote
    assert way.settings().differ_from(kept) == [], "nothing is recreated for it"
    written = manifests.configuration(way.settings(), finished=True)
    assert written["metadata"] == OLDER[which]["metadata"], "it is the same object"
    assert "kubeconfig" not in json.loads(written["data"]["settings.json"]), "a path of a machine is not kept there"
    assert Settings.from_json(written["data"]["settings.json"]) == way.settings()


def test_what_is_asked_for_now_goes_before_it(lab):
    way = lab(OLDER["asked"], sidecars="classic")
    assert way.settings().differ_from(way.kept()) == ["sidecars"]
    assert way.settings().images["sleep"] == "registry.example/curl:8"


@pytest.mark.parametrize(
    ("field", "value"),
    # All of these were accepted unchanged by that merlab, or would be by another one.
    [
        ("merbridge_manifest", "of-another-merlab"),
        ("istio_set", ["--set=x"]),
        ("istio_tag", ""),
        ("dataplane", "of-another-merlab"),
    ],
)
def test_what_can_no_longer_be_is_refused_in_a_sentence_with_the_one_command(lab, field, value):
    told = json.loads(OLDER["default"]["data"]["settings.json"])
    way = lab({**OLDER["default"], "data": {"settings.json": json.dumps({**told, field: value}), "finished": "true"}})
    with pytest.raises(LabError, match=f"cannot be read from the ConfigMap default/merlab: .*{field}") as refused:
        way.settings()
    assert refused.value.hint == "merlab down && merlab up"
    assert "\n" not in refused.value.what
