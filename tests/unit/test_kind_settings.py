"""The settings of the kind lab: the table, what was requested, what fits together, what is applied."""

import dataclasses
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from merbridge_lab import cli
from merbridge_lab.adapters import kind_cli as kind_command
from merbridge_lab.adapters import kubernetes_api
from merbridge_lab.adapters.docker import Engine
from merbridge_lab.adapters.istioctl import complaint
from merbridge_lab.errors import LabError, UsageError
from merbridge_lab.labs import selection
from merbridge_lab.labs.kind import driver as kind
from merbridge_lab.labs.kind import names
from merbridge_lab.labs.kind.driver import KindDriver
from merbridge_lab.labs.kubernetes import manifests, topology
from merbridge_lab.labs.kubernetes.settings import Settings, versions
from merbridge_lab.labs.options import Options
from merbridge_lab.requirements import kind_lab

CAPTURED = Path(__file__).parents[1] / "captured" / "kind"


@pytest.fixture
def settings():
    return Settings.default()


def test_the_table_fits_together(settings):
    assert settings.misfit() is None
    assert settings.kubernetes == (1, 36)
    assert "@sha256:" in settings.kind_image, "known from kind's own sources"


@pytest.mark.parametrize(
    ("image", "tag", "fits"),
    [
        ("kindest/node:v1.37.0", "1.30.4", False),
        ("kindest/node:v1.31.9", "1.30.4", False),
        ("kindest/node:v1.32.0", "1.30.4", True),
        ("kindest/node:v1.37.0", "1.31-merlab", True),  # nothing is known of it
        ("my/node:latest", "1.30.4", True),
    ],
)
def test_pairs_are_checked(settings, image, tag, fits):
    asked = settings.asked(Options(kind_image=image, istio_tag=tag))
    assert (asked.misfit() is None) == fits
    if not fits:
        with pytest.raises(LabError, match=r"Istio 1\.30 supports Kubernetes 1\.32 to 1\.36") as refused:
            asked.require_fit()
        assert versions()["kind"]["image"] in refused.value.hint


def test_what_is_asked_for_wins_and_what_is_not_stays(settings):
    asked = settings.asked(Options(istio_hub="h", images={"sleep": "s:1"}, sidecars="native", istio_set=("a=b",)))
    assert (asked.istio_hub, asked.istio_tag) == ("h", settings.istio_tag)
    assert asked.images == {**settings.images, "sleep": "s:1"}
    assert asked.istio()[-1] == "a=b"
    assert "values.pilot.env.ENABLE_NATIVE_SIDECARS=true" in asked.istio()
    assert settings.asked(Options()) == settings
    assert asked.differ_from(settings) == ["istio_hub", "istio_set", "sidecars", "images"]


def test_an_image_of_what_is_not_there_is_refused(settings):
    with pytest.raises(UsageError, match="no such workload"):
        settings.asked(Options(images={"slept": "x"}))


def test_what_is_kept_in_the_cluster_is_read_back(settings):
    asked = settings.asked(Options(istio_set=("a=b", "c=d")))
    kept = manifests.configuration(asked, finished=False)["data"]
    assert Settings.from_json(kept["settings.json"]) == asked
    assert kept["finished"] == "false"
    with pytest.raises(LabError, match="cannot be read"):
        Settings.from_json("{}")


# -- manifests


@pytest.mark.parametrize("name", manifests.NAMES)
def test_every_manifest_is_yaml_and_merlabs(settings, name):
    objects = manifests.objects(name, settings)
    assert objects
    for one in objects:
        if one["kind"] not in ("Cluster", "Namespace"):
            assert one["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "merlab"
            own = {"helper": topology.HELPERS, "merbridge": topology.ISTIO, "merlab": "merlab-agent"}
            namespace = own.get(name, topology.NAMESPACE)
            assert one["metadata"].get("namespace", namespace) == namespace


def test_the_clusters_configuration_has_the_mark(settings):
    (cluster,) = manifests.objects("kind", settings)
    mounts = [mount["containerPath"] for node in cluster["nodes"] for mount in node["extraMounts"]]
    assert mounts == [names.MARK]


def test_workloads_are_those_of_the_layout(settings):
    objects = [one for name in manifests.APPLIED for one in manifests.objects(name, settings)]
    deployments = {one["metadata"]["name"]: one for one in objects if one["kind"] == "Deployment"}
    assert set(deployments) == {spec.name for spec in topology.WORKLOADS}
    for spec in topology.WORKLOADS:
        labels = deployments[spec.name]["spec"]["selector"]["matchLabels"]
        assert ",".join(f"{key}={value}" for key, value in labels.items()) == spec.selector
        (container,) = deployments[spec.name]["spec"]["template"]["spec"]["containers"]
        assert (container["name"], container["image"]) == (spec.container, settings.images[spec.name])
        assert deployments[spec.name]["spec"]["strategy"]["type"] == "Recreate"


def test_no_other_manifest():
    done = CliRunner().invoke(cli.app, ["manifests", "nginx"])
    assert done.exit_code == 2
    assert "there is no manifest called 'nginx'; there are kind, namespace, strict, sleep, helloworld" in done.stderr


def test_manifests_can_be_piped():
    done = CliRunner().invoke(cli.app, ["manifests", "sleep", "--image", "sleep=my/curl:1"])
    assert done.exit_code == 0
    assert done.stderr == ""
    kinds = [one["kind"] for one in yaml.safe_load_all(done.stdout)]
    assert kinds == ["ServiceAccount", "Deployment"]
    assert 'image: "my/curl:1"' in done.stdout
    whole = CliRunner().invoke(cli.app, ["manifests"]).stdout
    assert [one["kind"] for one in yaml.safe_load_all(whole)][:2] == ["Namespace", "PeerAuthentication"]


# -- options


def test_options_of_clusters_are_wrong_usage_elsewhere():
    done = CliRunner().invoke(cli.app, ["up", "--lab", "embedded", "--istio-hub", "x"])
    assert done.exit_code == 2
    assert "--istio-hub is for labs on a cluster" in done.stderr


@pytest.mark.parametrize("option", ["--image", "--istio-set"])
def test_pairs_are_said_as_pairs(option):
    done = CliRunner().invoke(cli.app, ["up", "--lab", "kind", option, "sleep"])
    assert done.exit_code == 2
    assert "NAME=VALUE" in done.stderr


DIGEST = "@sha256:" + "0" * 64


@pytest.mark.parametrize(
    "given",
    [
        *(
            f"--image=sleep={ref}"
            for ref in ("foo:", "@x", "a: b", "*a", "", ":1", "A", "a//b", "-a", "a@sha256:0", "a\n")
        ),
        "--kind-image=kindest/node:",
        "--istio-hub=docker.io/istio:1",
        "--istio-hub=docker.io/istio/",
        "--istio-tag=1.30.4 x",
        "--istio-tag=",
    ],
)
def test_what_is_no_image_is_wrong_usage(given):
    for command in (["up", "--lab", "kind"], ["manifests"] if "kind-image" not in given else ["up"]):
        done = CliRunner().invoke(cli.app, [*command, given])
        assert done.exit_code == 2, done.output


@pytest.mark.parametrize(
    "ref",
    [
        "curl",
        "curlimages/curl:8.16.0",
        "localhost:5000/x:1",
        "[::1]:5000/x",
        "merlab.test/a_b/c__d-e--f.g:V1_x.y-z",
        f"kindest/node:v1.36.0{DIGEST}",
        f"docker.io/istio/proxyv2{DIGEST}",
        "10.0.0.1:443/1e3",
        "1e3",
        "null",
        "123",
    ],
)
def test_what_is_an_image_gets_into_the_manifest_as_it_is(ref):
    done = CliRunner().invoke(cli.app, ["manifests", "sleep", "--image", f"sleep={ref}"])
    assert done.exit_code == 0, done.output
    deployment = list(yaml.safe_load_all(done.stdout))[-1]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == ref


def test_only_labs_on_clusters_can_be_told():
    assert selection.tell(KindDriver(), Options())
    assert not selection.tell(selection.pick("embedded")[0], Options())


def test_options_are_named_as_they_are_typed():
    given = Options(kind_image="x", images={"sleep": "y"}, keep_cluster=True)
    assert given.said() == ["--kind-image", "--image", "--keep-cluster"]
    assert Options().said() == []


def test_missing_commands_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="docker is not on PATH"):
        KindDriver().require_able()
    assert not KindDriver().is_up()
    assert not KindDriver().is_possible()


def test_istioctl_is_needed_by_down_only_to_take_istio_out(monkeypatch, tmp_path):
    (tmp_path / "docker").write_text(f"#!/bin/sh\ncat '{CAPTURED / 'info.json'}'\n")
    (tmp_path / "kind").write_text("#!/bin/sh\n")
    for name in ("docker", "kind"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    KindDriver().require_able()
    with pytest.raises(LabError, match="istioctl is not on PATH"):
        KindDriver(Options(keep_cluster=True)).require_able()


def test_a_docker_that_hangs_holds_up_nobody(monkeypatch, tmp_path):
    for name in ("docker", "kind", "istioctl"):
        (tmp_path / name).write_text("#!/bin/sh\nexec sleep 60\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(kind, "_ANSWER", 0.3)
    monkeypatch.delenv("MERLAB_LAB", raising=False)
    began = time.monotonic()
    assert not KindDriver().is_up()
    assert selection.pick("auto")[0].name == "embedded"
    assert time.monotonic() - began < 5


def test_the_cluster_is_reached_past_any_proxy(monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert kubernetes_api.without_proxy("127.0.0.1") == "127.0.0.1"
    monkeypatch.setenv("NO_PROXY", "example.com,.local")
    assert kubernetes_api.without_proxy("127.0.0.1") == "example.com,.local,127.0.0.1"


def test_a_context_is_found_where_kubectl_looks(monkeypatch, tmp_path):
    there = {
        "clusters": [{"name": "kind-merbridge", "cluster": {"server": "https://127.0.0.1:1"}}],
    }
    (tmp_path / "there").write_text(yaml.safe_dump(there))
    (tmp_path / "broken").write_text("{")
    (tmp_path / "empty").write_text("")
    monkeypatch.setenv("KUBECONFIG", ":".join(str(tmp_path / one) for one in ("none", "broken", "empty", "there")))
    assert kind_command.known("merbridge") == {"server": "https://127.0.0.1:1"}
    assert kind_command.known("other") is None
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert kind_command.known("merbridge") is None
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kind_command.known("merbridge") is None


def test_the_complaint_of_istioctl_stands_behind_its_ship():
    said = "   /|\\\n  |  \\__\n✘ Istiod\nError: failed to install manifests\nit says more"
    assert complaint(said) == "Error: failed to install manifests\nit says more"
    assert complaint("no such word") == "no such word"


# -- doctor


ENGINE = Engine("28.2", "Debian", "2", rootless=False, cpus=2, memory=8 * 1024**3, root="/")


def verdicts(found):
    return {one.name: one.verdict for one in found}


def test_a_good_engine():
    assert set(verdicts(kind_lab.of_engine(ENGINE, (1, 36))).values()) == {"pass"}


@pytest.mark.parametrize(
    ("change", "name", "verdict"),
    [
        ({"rootless": True}, "docker.rootful", "fail"),
        ({"memory": 1024**3}, "docker.memory", "fail"),
        ({"cgroup_version": "1"}, "docker.cgroup", "warn"),
    ],
)
def test_what_an_engine_lacks_comes_with_what_mends_it(change, name, verdict):
    found = kind_lab.of_engine(dataclasses.replace(ENGINE, **change), (1, 35))
    assert verdicts(found)[name] == verdict
    assert next(one for one in found if one.name == name).hint


def test_cgroup_v1_is_fine_before_kubernetes_1_35():
    assert kind_lab.cgroup(dataclasses.replace(ENGINE, cgroup_version="1"), (1, 34)).verdict == "pass"


def test_limits_of_inotify(tmp_path):
    (tmp_path / "max_user_watches").write_text("1000000")
    (tmp_path / "max_user_instances").write_text("128")
    found = kind_lab.inotify(tmp_path)
    assert (found.verdict, found.hint) == ("warn", "sysctl fs.inotify.max_user_instances=2048")
    (tmp_path / "max_user_instances").write_text("8192")
    assert kind_lab.inotify(tmp_path).verdict == "pass"
    assert kind_lab.inotify(tmp_path / "nothing").verdict == "skip"


@pytest.mark.parametrize(
    ("environment", "verdict", "words"),
    [
        ({}, "pass", "none"),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "pass", "https_proxy=http://proxy:3128: the node pulls"),
        ({"https_proxy": "http://me:secret@proxy:3128"}, "pass", "https_proxy=http://…@proxy:3128"),
        ({"http_proxy": "127.0.0.1:3128"}, "warn", "http_proxy=127.0.0.1:3128"),
        ({"all_proxy": "socks5://localhost:1080"}, "warn", "all_proxy=socks5://localhost:1080"),
    ],
)
def test_a_proxy_must_be_one_that_the_node_can_reach(environment, verdict, words):
    found = kind_lab.proxies(environment)
    assert found.verdict == verdict
    assert words in found.found
    assert "secret" not in found.found


@pytest.mark.parametrize(
    ("where", "verdict"),
    [
        ("unix:///run/docker.sock", "pass"),
        ("tcp://127.0.0.1:2375", "pass"),
        ("tcp://192.0.2.1:2376", "fail"),
        ("ssh://me@host", "fail"),
    ],
)
def test_the_api_listens_where_docker_is(where, verdict):
    assert kind_lab.ports({"DOCKER_HOST": where}).verdict == verdict


def test_versions():
    assert kind_lab.versions(None).verdict == "pass"
    assert kind_lab.versions("they do not fit").verdict == "fail"


@pytest.mark.parametrize(
    ("own", "asked", "verdict"),
    [
        ("1.30.4", "1.30.4", "pass"),
        ("1.31-merlab", "1.30.4", "pass"),
        ("1.28.0", "1.30.4", "fail"),
        ("2.0.0", "1.30.4", "fail"),
        ("unknown", "1.30.4", "skip"),
        ("1.30.4", "latest", "skip"),
    ],
)
def test_istioctl_is_compared_with_the_release_it_is_to_install(own, asked, verdict):
    assert kind_lab.istioctl_fits(own, asked).verdict == verdict


def test_a_kind_that_was_never_tried_is_a_warning():
    assert kind_lab.kind_tried("v0.33.0", ["v0.33.0"]).verdict == "pass"
    assert kind_lab.kind_tried("v0.20.0", ["v0.33.0"]).verdict == "warn"
