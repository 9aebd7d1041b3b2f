"""The lab on a cluster with a provider that is neither kind nor Docker: what it asks of it, and what it shows."""

import inspect
import json
import os
from dataclasses import replace

import pytest
from tests.unit.api_server import Keys, Server
from tests.unit.stub_provider import StubComponent, StubImages, StubNode, StubProvider

from merbridge_lab.adapters import docker, kind_cli, kubernetes_api
from merbridge_lab.adapters.command import Result
from merbridge_lab.errors import LabError
from merbridge_lab.lab import Component
from merbridge_lab.labs.kubernetes import cluster_wide, provider, topology
from merbridge_lab.labs.kubernetes.managed_lab import ManagedKubernetesLab
from merbridge_lab.labs.kubernetes.settings import Settings
from merbridge_lab.labs.options import Options


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize(
    ("protocol", "stub"),
    [
        (provider.Node, StubNode()),
        (provider.NodeImages, StubImages()),
        (provider.OwningProvider, StubProvider()),
        (provider.ClusterProvider, StubProvider()),
        (Component, StubComponent(None)),
    ],
)
def test_the_stub_has_what_the_protocol_asks_for(protocol, stub):
    asked = {
        name: member
        for each in protocol.__mro__
        if each.__module__ != "typing"
        for name, member in {**vars(each), **getattr(each, "__annotations__", {})}.items()
        if not name.startswith("_")
    }
    assert asked
    for name, member in asked.items():
        assert hasattr(stub, name), name
        if inspect.isfunction(member):
            assert parameters(getattr(stub, name)) == parameters(member), name


@pytest.fixture(autouse=True)
def no_docker(monkeypatch):
    """Nothing of this may run the commands of another provider."""

    def refuse(*_, **__):
        raise AssertionError("a command of kind's provider")

    monkeypatch.setattr(docker, "run", refuse)
    monkeypatch.setattr(kind_cli, "run", refuse)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Return the provider of a cluster whose API has these objects, and the requests that the API got."""
    monkeypatch.setenv("no_proxy", "example.com")
    keys, servers = Keys(tmp_path), []

    def make(objects=None, **more):
        def answer(connection, request):
            method, where, _ = request.split(" ", 2)
            body = (objects or {}).get(where.partition("?")[0])
            told = json.dumps(body if body is not None or method != "GET" else {"message": "no"}).encode()
            status = b"404 x" if body is None and method == "GET" else b"200 x"
            if where == "/readyz":
                status, told = b"200 x", b"ok"
            connection.sendall(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(told), told))

        servers.append(Server(keys, answer))
        return StubProvider(keys.credentials(servers[-1].port), **more), servers[-1].requests

    yield make
    for server in servers:
        server.close()


def test_the_lab_is_named_by_its_provider_and_needs_what_that_needs():
    lab = ManagedKubernetesLab(StubProvider(nodes=[]), Options(dataplane="none"))
    assert lab.name == "stub"
    assert [one.name for one in lab.requirements()] == ["stub"]
    assert not lab.exists
    assert ManagedKubernetesLab(StubProvider(), Options()).exists
    with pytest.raises(LabError, match="no lab is up"):
        ManagedKubernetesLab(StubProvider(nodes=[]), Options()).require_up()


def test_what_one_types_has_the_providers_context_and_commands():
    lab = ManagedKubernetesLab(
        StubProvider(nodes=[]), Options(images={"sleep": "r.example/curl:1"}, dataplane="merbridge")
    )
    offline = lab.offline_commands()
    assert offline.workload("sleep").request_command().startswith("kubectl --context stub-context exec deploy/sleep ")
    assert offline.trace_command() == "stub-exec node-1 cat /sys/kernel/tracing/trace_pipe"
    assert (
        offline.workload("sleep").rules.flush_command().startswith("stub-exec node-1 nsenter -t PID -n iptables-nft ")
    )
    installed = lab.mesh.shell_commands()
    assert installed[0] == "stub load r.example/curl:1"
    assert all("--context stub-context" in one for one in installed if one.startswith(("kubectl", "istioctl")))
    assert any(one.startswith("stub load ") for one in lab.dataplane.shell_commands())
    lab.show("kubectl --context stub-context get pods")
    assert [one.command for one in lab.shown()] == ["stub export", "kubectl --context stub-context get pods"]


def test_a_cluster_that_the_lab_may_not_use_is_not_read(cluster):
    lent, requests = cluster(usable=False)
    lab = ManagedKubernetesLab(lent, Options())
    told = lab.describe()
    assert (told["up"], told["workloads"], told["problems"]) == (False, [], [])
    assert requests == []
    assert lab.settings() == Settings.default().asked(Options()), "not those of a foreign cluster's ConfigMap"


def test_the_settings_of_a_lab_are_those_of_its_cluster_with_the_image_of_its_node(cluster):
    kept = replace(Settings.default(), istio_tag="1.29.0", kind_image="other:1")
    where = kubernetes_api.path("ConfigMap", topology.SETTINGS)
    brought, _ = cluster({where: {"data": {"settings.json": kept.to_json(), "finished": "true"}}})
    settings = ManagedKubernetesLab(brought, Options()).settings()
    assert settings == replace(kept, kind_image="stub/node:v1.36.1")


def test_what_stays_is_asked_of_the_provider():
    settings = Settings.default()
    images = StubImages(settings.kind_image, "unrelated:1")
    lab = ManagedKubernetesLab(StubProvider(nodes=[], images=images), Options())
    assert lab.stays() == [settings.kind_image]


def test_the_report_of_a_run_is_kept_on_the_node(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(topology, "STATE", str(tmp_path / "state"))
    seen = []

    def execute(argv):
        seen.append(argv)
        return Result("", 0, "", "")

    brought, _ = cluster(nodes=[StubNode(execute=execute)])
    ManagedKubernetesLab(brought, Options()).keep_report({"verdict": "pass"})
    (written,) = seen
    assert written[-1].endswith("last-report.json")


def test_emptying_an_owned_cluster_removes_istio_and_the_state_of_every_node(cluster, tmp_path, monkeypatch):
    (tmp_path / "istioctl").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/istioctl.log\n')
    (tmp_path / "istioctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    crds = [
        {"metadata": {"name": "gateways.networking.istio.io"}, "spec": {"group": "networking.istio.io"}},
        {"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com"}},
    ]
    emptied = []

    def node(name):
        def execute(argv):
            emptied.append((name, *argv))
            return Result("", 0, "", "")

        return StubNode(name, execute=execute)

    brought, requests = cluster(
        {"/api/v1/namespaces": {"items": [{"metadata": {"name": "default"}}]}, definitions: {"items": crds}},
        nodes=[node("one"), node("two")],
    )
    api = kubernetes_api.Api(brought.credentials())
    cluster_wide.purge_mesh(brought.owned(), api, Settings.default())
    assert "uninstall -y --purge" in (tmp_path / "istioctl.log").read_text()
    gone = [request.split()[1].partition("?")[0] for request in requests if request.startswith("DELETE")]
    assert kubernetes_api.path("Namespace", topology.ISTIO) in gone
    assert f"{definitions}/gateways.networking.istio.io" in gone
    assert f"{definitions}/widgets.example.com" not in gone
    assert emptied == [(name, "rm", "-rf", topology.STATE) for name in ("one", "two")]


def test_down_empties_a_cluster_only_where_it_stays_and_is_merlabs(cluster):
    for usable, keep in ((True, False), (False, True), (False, False)):
        brought, requests = cluster(usable=usable)
        ManagedKubernetesLab(brought, Options(keep_cluster=keep)).mesh.remove()
        assert requests == [], (usable, keep)
