"""The ways into a cluster: client certificate, token, exec plugin, service account; a real HTTPS server asks for them.

The answers are those of tests/unit/api_server.py, the requests are those of the kubernetes library.
"""

import json
import os
import tempfile
from pathlib import Path

import pytest
import yaml
from tests.unit.api_server import CLOSE, Keys, Server, plainly, upgraded

from merbridge_lab.adapters import kubeconfig, kubernetes_api, kubernetes_exec
from merbridge_lab.errors import LabError

TOKEN = "a.b.c"  # noqa: S105 - of nothing


@pytest.fixture
def keys(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "keys").mkdir()
    return Keys(tmp_path / "keys")


@pytest.fixture
def serve(keys):
    started = []

    def start(answer=None, **more):
        started.append(Server(keys, answer or told, **more))
        return started[-1]

    yield start
    for server in started:
        server.close()


def told(connection, _request):
    """Answer every request with an empty list."""
    body = b'{"items": []}'
    connection.sendall(b"HTTP/1.1 200 x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def written(keys, server, user, **cluster):
    """Write a kubeconfig with two contexts beside the keys, and paths relative to it."""
    ours = {"server": f"https://127.0.0.1:{server.port}", "certificate-authority": "ca", **cluster}
    config = {
        "contexts": [
            {"name": "ours", "context": {"cluster": "a", "user": "me"}},
            {"name": "other", "context": {"cluster": "b", "user": "nobody"}},
        ],
        "clusters": [
            {"name": "a", "cluster": ours},
            {"name": "b", "cluster": {"server": "https://127.0.0.1:9"}},
        ],
        "users": [{"name": "me", "user": user}],
        "current-context": "other",
    }
    file = keys.ca.parent / "config"
    file.write_text(yaml.safe_dump(config))
    return file


def header(server):
    (line,) = [line for line in server.requests[-1].split("\r\n") if line.lower().startswith("authorization:")]
    return line.partition(": ")[2]


def test_a_client_certificate_in_files_beside_the_kubeconfig(keys, serve, monkeypatch):
    server = serve(asks_certificate=True)
    file = written(keys, server, {"client-certificate": "client.crt", "client-key": "client.key"})
    monkeypatch.chdir("/")
    assert kubernetes_api.Api(kubeconfig.of_file(file, "ours")).get("/api/v1/nodes") == {"items": []}
    assert "authorization" not in server.requests[-1].lower()


def test_a_client_certificate_inside_of_it_is_never_written_to_a_disk(keys, serve, monkeypatch, tmp_path):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    server = serve(asks_certificate=True)
    api = kubernetes_api.Api(kubeconfig.of_mapping(keys.kubeconfig(server.port)))
    assert api.get("/api/v1/nodes") == {"items": []}
    assert list((tmp_path / "tmp").iterdir()) == []
    assert api.context == "kind-merbridge"
    again = yaml.safe_load(Path(api.kubeconfig_file).read_text())
    assert kubernetes_api.Api(kubeconfig.of_mapping(again)).get("/api/v1/nodes") == {"items": []}


def test_a_server_that_asks_for_a_certificate_is_not_entered_without_one(keys, serve):
    server = serve(asks_certificate=True)
    api = kubernetes_api.Api(kubeconfig.of_file(written(keys, server, {"token": TOKEN}), "ours"))
    assert server.requests == []
    with pytest.raises(LabError):
        api._once("get", "/api/v1/nodes", {})


@pytest.mark.parametrize("user", [{"token": TOKEN}, {"tokenFile": "token"}], ids=["inside", "in a file"])
def test_a_token_goes_with_every_request_and_every_websocket(keys, serve, user):
    (keys.ca.parent / "token").write_text(TOKEN)
    server = serve()
    api = kubernetes_api.Api(kubeconfig.of_file(written(keys, server, user), "ours"))
    assert api.get("/api/v1/nodes") == {"items": []}
    assert header(server) == f"Bearer {TOKEN}"
    success = (2, b"\x03" + json.dumps({"status": "Success"}).encode())
    shell = serve(upgraded(success, (CLOSE, b"\x03\xe8")))
    api = kubernetes_api.Api(kubeconfig.of_file(written(keys, shell, user), "ours"))
    assert kubernetes_exec.execute(api, "default", "sleep-1", "sleep", ["true"], 10) == (0, "", "")
    assert header(shell) == f"Bearer {TOKEN}"


def plugin(folder, status, exits=0):
    """Write an exec plugin beside the kubeconfig, and return the user that it is for."""
    version = "client.authentication.k8s.io/v1"
    answer = json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status})
    (folder / "plugin").write_text(
        f"#!/bin/sh\n[ \"$ASKED\" = yes ] || exit 9\ncat <<'END'\n{answer}\nEND\nexit {exits}\n"
    )
    (folder / "plugin").chmod(0o755)
    asked = [{"name": "ASKED", "value": "yes"}]
    return {"exec": {"apiVersion": version, "command": "./plugin", "env": asked, "interactiveMode": "Never"}}


def test_an_exec_plugin_beside_the_kubeconfig_gives_a_token(keys, serve):
    server = serve()
    file = written(keys, server, plugin(keys.ca.parent, {"token": TOKEN}))
    assert kubernetes_api.Api(kubeconfig.of_file(file, "ours")).get("/api/v1/nodes") == {"items": []}
    assert header(server) == f"Bearer {TOKEN}"


def test_an_exec_plugin_gives_a_client_certificate(keys, serve):
    server = serve(asks_certificate=True)
    certificate, key = (file.read_text() for file in keys.client)
    status = {"clientCertificateData": certificate, "clientKeyData": key}
    file = written(keys, server, plugin(keys.ca.parent, status))
    assert kubernetes_api.Api(kubeconfig.of_file(file, "ours")).get("/api/v1/nodes") == {"items": []}


def test_an_exec_plugin_that_fails_is_a_sentence(keys, serve):
    file = written(keys, serve(), plugin(keys.ca.parent, {"token": TOKEN}, exits=5))
    with pytest.raises(LabError, match=r"the credentials for the cluster at https://.* cannot be used") as error:
        kubernetes_api.Api(kubeconfig.of_file(file, "ours")).get("/api/v1/nodes")
    assert "process returned 5" in error.value.stderr


def test_the_service_account_of_a_pod(keys, serve, monkeypatch, tmp_path):
    server = serve()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "ca.crt").write_bytes(keys.ca.read_bytes())
    found = kubeconfig.of_service_account(tmp_path)
    assert kubernetes_api.Api(found).get("/api/v1/nodes") == {"items": []}
    assert header(server) == f"bearer {TOKEN}"
    # Other programs get the same as a kubeconfig.
    assert kubernetes_api.Api(kubeconfig.of_mapping(found.kubeconfig())).get("/api/v1/nodes") == {"items": []}
    assert header(server) == f"Bearer {TOKEN}"


def test_without_a_service_account_it_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(LabError, match="does not run in a pod"):
        kubeconfig.of_service_account(tmp_path)


def test_only_client_certificates_expire_in_words(keys, serve, tmp_path):
    server = serve(plainly(401, "Unauthorized"))
    (tmp_path / "old").mkdir()
    old = Keys(tmp_path / "old", days=-1)
    for name in ("client.crt", "client.key"):
        (keys.ca.parent / f"old-{name}").write_bytes((old.ca.parent / name).read_bytes())
    expired = {"client-certificate": "old-client.crt", "client-key": "old-client.key"}
    for user, said in ((expired, "expired on"), ({"token": TOKEN}, "does not allow to")):
        api = kubernetes_api.Api(kubeconfig.of_file(written(keys, server, user), "ours"))
        with pytest.raises(LabError, match=said):
            api._once("get", "/api/v1/nodes", {})


def test_a_proxy_is_left_out_only_where_the_cluster_is_on_this_machine(keys, serve, monkeypatch):
    server = serve()
    monkeypatch.setenv("no_proxy", "")
    file = written(keys, server, {"token": TOKEN}, **{"proxy-url": "http://127.0.0.1:9"})
    lent = kubernetes_api.Api(kubeconfig.of_file(file, "ours"))
    with pytest.raises(kubernetes_api.ApiUnavailableError):
        lent._once("get", "/api/v1/nodes", {})
    assert os.environ["no_proxy"] == ""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    near = kubernetes_api.Api(kubeconfig.of_mapping(keys.kubeconfig(server.port), direct=True))
    assert near.get("/api/v1/nodes") == {"items": []}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"contexts": []}, "has no context 'ours': it has none"),
        ({"contexts": [{"name": "other", "context": {}}]}, "has no context 'ours': it has other"),
        ({"contexts": [{"name": "ours", "context": {"user": "me"}}]}, "is incomplete"),
        ({"contexts": ["ours"]}, "is incomplete"),
        ({"clusters": []}, "is incomplete: 'a'"),
        ({"clusters": [{"name": "a", "cluster": {}}]}, "is incomplete: 'server'"),
        ({"users": [{"name": "me", "user": {"client-key-data": "=x"}}]}, "is incomplete"),
    ],
)
def test_a_kubeconfig_that_is_not_whole_is_a_sentence(keys, serve, change, said):
    file = written(keys, serve(), {"token": TOKEN})
    whole = yaml.safe_load(file.read_text())
    with pytest.raises(LabError, match=said):
        kubeconfig.of_mapping({**whole, **change}, "ours")


@pytest.mark.parametrize("content", [None, "", "[]", "x: [", "\0"])
def test_a_file_that_is_no_kubeconfig_is_a_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / "config").write_text(content)
    with pytest.raises(LabError, match=r"is no kubeconfig that can be read|has no context"):
        kubeconfig.of_file(tmp_path / "config")


def test_a_context_that_is_named_goes_before_the_current_one(keys, serve):
    file = written(keys, serve(), {"token": TOKEN})
    assert kubeconfig.of_file(file).server == "https://127.0.0.1:9"
    assert kubeconfig.of_file(file, "ours").context == "ours"
