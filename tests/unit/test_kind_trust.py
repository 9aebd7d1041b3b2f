"""S6, S7, S8: what the cluster says is checked before anything is done with it; merlab leaves little there."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.unit.stub_provider import StubImages, StubNode, StubProvider

from merbridge_lab.adapters import image_reference, kubernetes_api
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kind import cluster, local_state, names, ownership
from merbridge_lab.labs.kind.cluster import NodeComponent
from merbridge_lab.labs.kind.provider import KindProvider
from merbridge_lab.labs.kubernetes import connection, manifests, node_exec, settings_schema, topology
from merbridge_lab.labs.kubernetes.dataplanes.merbridge import dataplane, installation, manifest
from merbridge_lab.labs.kubernetes.settings import Settings
from merbridge_lab.labs.options import Options


@pytest.fixture
def settings():
    return Settings.default()


@pytest.fixture
def state(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "merlab"


# -- S6: the ConfigMap default/merlab


def changed(settings, **fields):
    return json.dumps({**json.loads(settings.to_json()), **fields})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", None),
        ("images", []),
        ("images", {"sleep": "x"}),
        ("images", {"sleep": 1, "helloworld-v1": "a", "helloworld-v2": "a", "merbridge": "a"}),
        ("images", {"sleep": "x y", "helloworld-v1": "a", "helloworld-v2": "a", "merbridge": "a"}),
        ("kind_image", ""),
        ("kind_image", "--privileged"),
        ("istio_hub", "a b"),
        ("istio_hub", 7),
        ("istio_tag", "\u001b[2J"),
        ("istio_tag", None),
        ("istio_set", "a=b"),
        ("istio_set", ["--file"]),
        ("istio_set", [{"a": "b"}]),
        ("istio_set", ["a=b\nc"]),
        ("sidecars", "none"),
        ("sidecars", ["classic"]),
        ("dataplane", "other"),
        ("dataplane", {}),
        ("merbridge_manifest", "file:///etc/passwd"),
        ("merbridge_manifest", "relative.yaml"),
        ("merbridge_manifest", None),
        ("unheard_of", 1),
    ],
)
def test_s6_a_field_that_is_not_as_it_must_be_is_a_sentence_that_names_it(settings, name, value):
    with pytest.raises(LabError, match="cannot be read from the ConfigMap default/merlab: ") as error:
        Settings.from_json(changed(settings, **{name: value}))
    assert name in error.value.what
    assert error.value.hint == "merlab down && merlab up"
    assert error.value.what.isprintable()


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", '"x"', "{}", "[" * 100_000, '{"istio_set": null}'])
def test_s6_what_are_no_settings_at_all_are_a_sentence(text):
    with pytest.raises(LabError, match="cannot be read"):
        Settings.from_json(text)


def test_s6_every_field_of_the_settings_is_in_the_schema(settings):
    fields = settings_schema._fields(settings.images, ("none",), ())
    assert set(fields) == set(json.loads(settings.to_json()))


class Cluster:
    """Replaces the API and the commands: what is there, and what was done."""

    def __init__(self, monkeypatch, *objects, text="none"):
        self.objects = {
            kubernetes_api.path(one["kind"], one["metadata"]["name"], "istio-system"): one for one in objects
        }
        self.done = []
        if text != "none":
            self.objects[kubernetes_api.path("ConfigMap", topology.SETTINGS)] = {"data": text}
        monkeypatch.setattr(ownership, "nodes", lambda: self.nodes)
        monkeypatch.setattr(ownership, "own_network", lambda: False)
        monkeypatch.setattr(cluster.kind_cli, "delete", self.delete_cluster)
        self.nodes = [_node()]

    def delete_cluster(self, _name, kubeconfig):
        self.done.append(kubeconfig)
        self.nodes = []

    def find(self, where):
        return self.objects.get(where)

    def get(self, _where):
        return {"items": []}

    def apply(self, document):
        self.done.append(("apply", document["kind"], document["metadata"]["name"]))

    def delete(self, where, **_):
        self.done.append(("delete", where))

    def ready(self):
        return True


def _node():
    from merbridge_lab.adapters.docker import Container

    return Container(names.NODE, "running", "kindest/node:v1.36.1", {}, (names.MARK,), ())


@pytest.mark.parametrize("data", [None, {}, {"settings.json": '{"images": null}'}])
def test_s6_a_configmap_of_nonsense_is_a_sentence_and_down_goes_on(monkeypatch, state, data):  # noqa: ARG001
    api = Cluster(monkeypatch, text=data)
    way = connection.Access(KindProvider(Options()), Options())
    monkeypatch.setattr(way, "api", lambda: api)
    for ask in (way.kept, way.settings):
        with pytest.raises(LabError, match="cannot be read"):
            ask()
    assert way.setup_complete() is False
    assert way.best_known_settings() == Settings.default().asked(Options(dataplane="none"))
    NodeComponent(way, lambda: None, kubeconfig=None, keep=False).remove()
    assert api.nodes == []


def test_s6_down_never_touches_a_kubeconfig_that_the_cluster_names(monkeypatch, settings, state, tmp_path):  # noqa: ARG001
    api = Cluster(monkeypatch, text={"settings.json": changed(settings, kubeconfig="/etc/shadow")})
    way = connection.Access(KindProvider(Options()), Options())
    monkeypatch.setattr(way, "api", lambda: api)
    assert way.kept() == settings, "an older merlab's is read, and its path is not"
    assert "kubeconfig" not in settings.to_json()
    NodeComponent(way, lambda: None, kubeconfig=None, keep=False).remove()
    assert api.done == [None]
    api.nodes, api.done = [_node()], []
    local_state.note_kubeconfig(str(tmp_path / "noted"))
    NodeComponent(way, lambda: None, kubeconfig=str(tmp_path / "given"), keep=False).remove()
    assert api.done == [None, str(tmp_path / "given"), str(tmp_path / "noted")]
    assert local_state.kubeconfig() == ""


def test_s6_what_is_noted_on_this_machine_is_this_users_alone(state, tmp_path):
    local_state.note_kubeconfig("/home/x/config")
    (file,) = state.iterdir()
    assert local_state.kubeconfig() == "/home/x/config"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o666)
    assert local_state.kubeconfig() == "", "anybody could have written that"
    for text in ("relative", "/a\0b", f"/{'x' * 5000}"):
        local_state.note_kubeconfig(text)
        assert local_state.kubeconfig() == ""
    file.unlink()
    (tmp_path / "other").write_text("/etc/shadow")
    file.symlink_to(tmp_path / "other")
    assert local_state.kubeconfig() == "", "a link is not followed"
    local_state.note_kubeconfig("/home/y")
    assert (tmp_path / "other").read_text() == "/etc/shadow", "nor written through"
    assert local_state.kubeconfig() == "/home/y"


# -- S7: manifests, and what others put into the cluster


def with_containers(settings, tmp_path, **kinds):
    documents = manifest.objects(settings)
    manifest.daemonset(documents)["spec"]["template"]["spec"].update(kinds)
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(documents))
    return settings.asked(Options(merbridge_manifest=str(tmp_path / "all.yaml")))


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ({"containers": [{"name": "merbridge"}]}, "container merbridge of the DaemonSet of .* has no image"),
        ({"containers": [{"name": "merbridge", "image": None}]}, "has no image"),
        ({"containers": [{"name": "merbridge", "image": " "}]}, "has no image"),
        ({"initContainers": [{"name": "first"}]}, "container first of the DaemonSet of .* has no image"),
        ({"containers": [{"image": "x"}]}, "a container of the DaemonSet of .* has no name"),
        ({"containers": []}, "has no container"),
        ({"containers": ["merbridge"]}, "is incomplete"),
    ],
)
def test_s7_a_manifest_whose_container_has_no_image_is_a_sentence(settings, tmp_path, kinds, said):
    with pytest.raises(LabError, match=said) as error:
        manifest.objects(with_containers(settings, tmp_path, **kinds))
    assert error.value.hint


def test_s7_a_file_that_is_no_manifest_is_not_shown(settings, tmp_path):
    (tmp_path / "secret").write_text("root:hash: [secret\n\tx")
    with pytest.raises(LabError, match="is not a Kubernetes manifest") as error:
        manifest.objects(settings.asked(Options(merbridge_manifest=str(tmp_path / "secret"))))
    assert "secret" not in (error.value.stderr or "")


@pytest.mark.parametrize("kind", ["ClusterRole", "ServiceAccount", "ClusterRoleBinding"])
def test_s7_a_foreign_object_of_the_same_name_is_neither_taken_over_nor_deleted(monkeypatch, settings, kind):
    name = "merbridge"
    foreign = {"kind": kind, "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "Helm"}}}
    api = Cluster(monkeypatch, foreign, text={"settings.json": settings.to_json()})
    way = connection.Access(StubProvider(), Options())
    monkeypatch.setattr(way, "api", lambda: api)
    mine = dataplane.MerbridgeDataplane(way, lambda: None, lambda: 0)
    with pytest.raises(LabError, match=f"there is a {kind} merbridge already, and merlab did not make it") as error:
        mine.ensure()
    assert f"delete {kind.lower()} merbridge" in error.value.hint
    assert api.done == [], "nothing was applied"
    monkeypatch.setattr(mine, "state", lambda: (_ for _ in ()).throw(LabError("not here")))
    monkeypatch.setattr(dataplane.cleanup, "sweep", lambda _: [])
    monkeypatch.setattr(dataplane.cleanup, "require_none", lambda _: None)
    monkeypatch.setattr(mine, "place", lambda: None)
    mine.remove()
    assert api.done == []
    foreign["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "merlab"}
    mine.remove()
    assert api.done == [("delete", kubernetes_api.path(kind, name, "istio-system"))]


@pytest.mark.parametrize("note", ["{", "null", '"/api/v1/nodes"', "[1]", '["../x"]', '["/api/v1/x?y=z"]'])
def test_s7_a_note_of_nonsense_names_merlabs_own_objects(settings, note):
    daemonset = installation.with_notes(manifest.daemonset(manifest.objects(settings)), {installation.OBJECTS: note})
    assert installation.objects_of(daemonset) == installation.objects_of(None)


# -- S8: the helper pod


def test_s8_the_helper_has_no_capability_but_those_it_needs(settings):
    (pod,) = manifests.objects("helper", settings)
    (container,) = pod["spec"]["containers"]
    capabilities = container["securityContext"]["capabilities"]
    assert capabilities["drop"] == ["ALL"]
    assert sorted(capabilities["add"]) == ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE"]
    assert "privileged" not in container["securityContext"]
    assert pod["spec"]["automountServiceAccountToken"] is False


class Pods:
    """The pods of kube-system."""

    context = "stub-context"

    def __init__(self):
        self.there = {}

    def apply(self, document):
        running = {"containerStatuses": [{"state": {"running": {}}}]}
        self.there[document["metadata"]["name"]] = {"metadata": document["metadata"], "status": running}

    def all(self, _kind, _namespace, selector):
        key, _, value = selector.partition("=")
        return [one for one in self.there.values() if one["metadata"]["labels"].get(key) == value]

    def find(self, where):
        return self.there.get(where.rpartition("/")[2])

    def delete(self, where, **_):
        self.there.pop(where.rpartition("/")[2], None)


def test_s8_a_helper_goes_with_its_command_and_what_a_killed_one_left_with_the_next(monkeypatch, settings):
    api = Pods()
    monkeypatch.setattr(node_exec, "have_tools", lambda _: False)
    monkeypatch.setattr(connection.rollout, "images_on", lambda _: {image_reference.full_name(settings.proxy_image)})
    way = connection.Access(StubProvider(), Options())
    monkeypatch.setattr(way, "api", lambda: api)
    monkeypatch.setattr(way, "best_known_settings", lambda: settings)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as active_pods:
        gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        marks = {str(one.pid): node_exec._owner(one.pid) for one in (active_pods, gone)}
        gone.communicate(b"\n")
        marks["rebooted"] = {**marks[str(active_pods.pid)], node_exec._BOOT: "another"}
        marks["elsewhere"] = {**marks[str(gone.pid)], node_exec._SPACE: "1"}
        marks["again"] = {**marks[str(active_pods.pid)], node_exec._BEGAN: "1"}
        for name, mark in marks.items():
            api.apply({"metadata": {"name": name, "labels": {node_exec._PASSING: "true", **mark}}})
        api.apply({"metadata": {"name": topology.HELPER, "labels": {}}})
        found = way.find_node_exec()
        own = f"{topology.HELPER}-{os.getpid()}"
        stays = {str(active_pods.pid), "elsewhere", topology.HELPER}
        assert set(api.there) == {own, *stays}
        assert f"exec {topology.HELPER} -- true" in found.shell_command(["true"]), "what one types is for one's own"
        assert way.find_node_exec() is found
        way.close()
        assert set(api.there) == stays
        way.close()
        active_pods.communicate(b"\n")


def test_s8_a_node_with_its_own_tools_gets_no_helper(monkeypatch):
    api = Pods()
    monkeypatch.setattr(node_exec, "have_tools", lambda _: True)
    way = connection.Access(StubProvider(), Options())
    monkeypatch.setattr(way, "api", lambda: api)
    assert isinstance(way.find_node_exec(), node_exec.NodeToolsExec)
    way.close()
    assert api.there == {}


def test_s8_a_helper_that_does_not_run_is_removed_and_named(monkeypatch, settings):
    api = Pods()
    monkeypatch.setattr(node_exec, "_STARTS", 0.5)
    monkeypatch.setattr(node_exec, "_runs", lambda _: False)
    monkeypatch.setattr(node_exec.diagnostics, "diagnose", lambda *_, **__: None)
    with pytest.raises(LabError, match="did not run"):
        node_exec.make(api, StubNode(), settings, StubImages())
    assert api.there == {}


def test_s8_the_owner_is_named_by_labels_that_kubernetes_takes():
    assert all(
        len(value) <= 63 and value.replace("-", "").isalnum() for value in node_exec._owner(os.getpid()).values()
    )
    assert Path("/proc/self/ns/pid").stat().st_ino == int(node_exec._owner(os.getpid())[node_exec._SPACE])
