"""merlab's own dataplane on a cluster: its manifest and image, when it is the default, and when it is refused."""

import copy
import inspect
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tests.unit.stub_provider import StubImages, StubNode, StubProvider

from merbridge_lab import __version__
from merbridge_lab.agent import enrolment
from merbridge_lab.cli import agent as commands
from merbridge_lab.dataplane import evidence
from merbridge_lab.dataplane.legs import Legs
from merbridge_lab.errors import LabError
from merbridge_lab.interception import Counters
from merbridge_lab.labs.kubernetes import manifests
from merbridge_lab.labs.kubernetes.connection import Access
from merbridge_lab.labs.kubernetes.dataplanes import daemonsets
from merbridge_lab.labs.kubernetes.dataplanes.merlab import agent_image, manifest
from merbridge_lab.labs.kubernetes.managed_lab import ManagedKubernetesLab
from merbridge_lab.labs.kubernetes.settings import Settings
from merbridge_lab.labs.options import Options

ROOT = Path(__file__).parents[2]
UPSTREAM, OURS = Settings.default().images["merbridge"], Settings.default().images["merlab"]


@pytest.fixture
def daemonset():
    return manifest.daemonset(manifest.objects(Settings.default()))


# -- the manifest and the image


def test_the_image_is_of_this_version():
    assert f"merlab-agent:{__version__}" == OURS
    assert f"merlab-agent:{__version__}" in Settings.default().images.values()
    assert "merlab-agent:$(shell sed" in (ROOT / "Makefile").read_text()


def test_the_agents_container_may_what_it_needs_and_no_more(daemonset):
    pod = daemonset["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    context = container["securityContext"]
    assert (context["privileged"], context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (
        False,
        False,
        True,
    )
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context["capabilities"]["drop"] == ["ALL"]
    wanted = {"BPF", "PERFMON", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "SYS_ADMIN"}
    assert set(context["capabilities"]["add"]) == wanted
    assert pod["hostPID"]
    assert "hostNetwork" not in pod
    assert "hostIPC" not in pod
    volumes = {one["name"] for one in pod["volumes"]}
    assert {one["name"] for one in container["volumeMounts"]} == volumes


def test_a_privileged_container_has_the_bpffs_alone_and_ends_before_the_agent_starts(daemonset):
    """A mount gets from a container to its node only if that is privileged, and the volume is for both directions."""
    pod = daemonset["spec"]["template"]["spec"]
    (first,) = pod["initContainers"]
    assert first["image"] == pod["containers"][0]["image"]
    assert first["securityContext"]["privileged"]
    (mount,) = first["volumeMounts"]
    assert (mount["name"], mount["mountPropagation"]) == ("bpf", "Bidirectional")
    assert "restartPolicy" not in first, "it would be a sidecar, and go on"
    command = first["command"][-1]
    assert f" {manifest.NAME} {mount['mountPath']} " in f"{command} ", "the source by which it is unmounted"
    assert f"^{manifest.NAME} /sys/fs/bpf bpf " in manifest.UNMOUNT
    # Of a node's cgroups a container may be no slave: kind makes them private on cgroup v1.
    assert not any("mountPropagation" in one for one in pod["containers"][0]["volumeMounts"])


def test_its_mounts_are_where_the_agent_looks(daemonset):
    (container,) = daemonset["spec"]["template"]["spec"]["containers"]
    mounted = {one["mountPath"] for one in container["volumeMounts"]}
    asked = inspect.signature(commands.run_agent).parameters
    for name in ("run", "cgroup"):
        assert str(asked[name].default) in mounted
    assert str(asked["pins"].default.parent) in mounted
    assert asked["pins"].default.name == manifest.PINS
    assert str(asked["cri"].default.parent) in mounted
    assert f"MERLAB_AGENT_PORT:-{asked['port'].default}" in (ROOT / "images" / "agent" / "ready").read_text()


def test_only_two_objects_are_outside_of_its_namespace_and_it_may_read_namespaces_and_make_events():
    objects = manifest.objects(Settings.default())
    assert [one["kind"] for one in manifest.of_cluster(objects)] == ["Namespace", "ClusterRole", "ClusterRoleBinding"]
    role = next(one for one in objects if one["kind"] == "ClusterRole")
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
    ]
    account = next(one for one in objects if one["kind"] == "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert manifest.daemonset(objects)["spec"]["template"]["spec"]["automountServiceAccountToken"] is True
    assert {one["metadata"].get("namespace", manifest.NAMESPACE) for one in objects} == {manifest.NAMESPACE}


def test_the_same_daemonset_removes_what_it_attached(daemonset):
    before = copy.deepcopy(daemonset)
    told = manifest.removing(daemonset)
    assert daemonset == before
    assert manifest.is_removing(told)
    assert not manifest.is_removing(daemonset)
    entrypoint = (ROOT / "images" / "agent" / "entrypoint").read_text()
    assert manifest.REMOVE["name"] in entrypoint
    assert f"{manifest.REMOVE['value']})" in entrypoint
    command = f"set env daemonset/{manifest.NAME} {manifest.REMOVE['name']}={manifest.REMOVE['value']}"
    assert command in manifest.shown(Settings.default()), "whoever reads the manifest finds the command"


def test_the_control_pods_opt_out():
    pods = [one for one in manifests.objects("twin", Settings.default()) if one["kind"] == "Pod"]
    assert len(pods) == 2
    assert all(enrolment.opts_out(one["metadata"]["labels"]) for one in pods)
    for name in manifests.WORKLOADS:
        for one in manifests.objects(name, Settings.default()):
            labels = one.get("spec", {}).get("template", {}).get("metadata", {}).get("labels", {})
            assert not enrolment.opts_out(labels)


def test_the_disposable_server_is_served_and_of_no_other_service():
    pod, service = sorted(manifests.objects("disposable", Settings.default()), key=lambda one: one["kind"])
    assert (pod["kind"], service["kind"]) == ("Pod", "Service")
    assert not enrolment.opts_out(pod["metadata"]["labels"])
    selectors = {
        one["metadata"]["name"]: one["spec"]["selector"]
        for name in (*manifests.WORKLOADS, "twin", "disposable")
        for one in manifests.objects(name, Settings.default())
        if one["kind"] == "Service"
    }
    labels = pod["metadata"]["labels"].items()
    assert [name for name, selector in selectors.items() if selector.items() <= labels] == [service["metadata"]["name"]]


def test_an_image_that_is_nowhere_is_refused_with_the_command_that_builds_it():
    with pytest.raises(LabError, match="is not on this machine: build it in a checkout") as refused:
        agent_image.SOURCE.require([OURS], None, StubImages())
    assert refused.value.hint == "make agent-image"
    agent_image.SOURCE.require([OURS], None, StubImages(OURS))


def test_an_image_that_is_here_is_loaded_again_if_it_is_another_now():
    name, digest = f"docker.io/library/{OURS}", "application/vnd.oci.image.manifest.v1+json sha256:"

    def loaded(*rows):
        images = StubImages(OURS)
        listed = "\n".join(["REF TYPE DIGEST SIZE PLATFORMS LABELS", *rows])
        agent_image.SOURCE.load(StubNode(execute=lambda _argv: replace_output(listed)), [OURS], images)
        return images.loaded

    assert loaded(f"other:1 {digest}one") == [OURS]
    assert loaded(f"{name} {digest}one", f"sha256:another {digest}one") == [OURS]
    assert loaded(f"{name} {digest}one", f"sha256:{OURS} {digest}two") == [OURS]
    assert loaded(f"{name} {digest}one", f"sha256:{OURS} {digest}one") == []


def replace_output(text):
    from merbridge_lab.adapters.command import Result

    return Result("ctr", 0, f"{text}\n", "")


# -- which dataplane a lab gets


def access(*here, **options):
    return Access(StubProvider(nodes=[], images=StubImages(*here)), Options(**options))


@pytest.mark.parametrize(
    ("here", "options", "wanted", "said"),
    [
        ((), {}, "merbridge", False),
        ((UPSTREAM,), {}, "merbridge", False),
        ((UPSTREAM, OURS), {}, "merbridge", False),
        ((OURS,), {}, "merlab", True),
        ((OURS,), {"dataplane": "merbridge"}, "merbridge", False),
        ((UPSTREAM,), {"dataplane": "merlab"}, "merlab", False),
        ((OURS,), {"dataplane": "none"}, "none", False),
        ((OURS,), {"images": {"merbridge": "r.example/merbridge:1"}}, "merbridge", False),
    ],
)
def test_it_is_the_default_where_merbridges_image_is_not_at_hand(here, options, wanted, said):
    way = access(*here, **options)
    assert way.settings().dataplane == wanted
    assert bool(way.choices) is said
    assert all("is not on this machine (--dataplane merbridge pulls it)" in each for each in way.choices)


def lab_with(kept, monkeypatch, here=(), **options):
    provider = StubProvider(images=StubImages(*here))
    made = ManagedKubernetesLab(provider, Options(**options))
    settings = replace(Settings.default(), dataplane=kept)
    monkeypatch.setattr(made._access, "kept", lambda: settings)
    monkeypatch.setattr(made._access, "best_known_settings", made._access.settings)
    return made


@pytest.mark.parametrize("kept", ["merlab", "merbridge", "none"])
@pytest.mark.parametrize("here", [(), (UPSTREAM,), (OURS,)])
def test_what_a_lab_has_it_keeps_whatever_images_come_and_go(kept, here, monkeypatch):
    made = lab_with(kept, monkeypatch, here)
    assert made.settings().dataplane == kept
    assert made.choices() == []
    made.require_unchanged()


@pytest.mark.parametrize(("kept", "asked"), [("merlab", "merbridge"), ("merbridge", "merlab")])
def test_another_one_is_refused_with_the_commands_in_order(kept, asked, monkeypatch):
    made = lab_with(kept, monkeypatch, dataplane=asked)
    with pytest.raises(LabError, match=f"has the dataplane {kept}, not {asked}") as refused:
        made.recover()
    assert refused.value.hint == f"merlab up --dataplane none && merlab up --dataplane {asked}"


@pytest.mark.parametrize(("kept", "asked"), [("merlab", "none"), ("none", "merlab"), ("merlab", "merlab")])
def test_from_and_to_none_it_is_done(kept, asked, monkeypatch):
    lab_with(kept, monkeypatch, dataplane=asked).require_unchanged()


# -- what else intercepts


class StubApi:
    def __init__(self, *daemonsets):
        self.daemonsets = daemonsets

    def get(self, where):
        assert where == "/apis/apps/v1/daemonsets"
        return {"items": self.daemonsets}


def test_everything_else_that_intercepts_is_found(daemonset):
    other = yaml.safe_load(
        "{metadata: {name: mb, namespace: x}, spec: {template: {spec: {containers: [{command: [/app/mbctl, -m]}]}}}}"
    )
    proxy = yaml.safe_load(
        "{metadata: {name: kube-proxy, namespace: kube-system}, spec: {template: {spec: {containers: [{}]}}}}"
    )
    api = StubApi(daemonset, other, proxy)
    assert daemonsets.intercepting(api) == ["merlab-agent/merlab-agent", "x/mb"]
    assert daemonsets.intercepting(api, but=(manifest.NAMESPACE, manifest.NAME)) == ["x/mb"]


# -- what is read around a batch


def test_messages_that_went_by_tcp_for_conntrack_are_told_apart():
    names = ("outbound_connects", "passed_refresh")
    before = {"sleep": dict.fromkeys(names, 1), "helloworld-v1": dict.fromkeys(names, 1)}
    after = {"sleep": {"outbound_connects": 5, "passed_refresh": 3}, "helloworld-v1": {"passed_refresh": 2}}
    batch = SimpleNamespace(client="sleep", exchanges=(), servers=frozenset({"helloworld-v1"}), trace=())
    legs = Legs(True, False, False, "TCP only")
    assert evidence.interception(batch, Counters(before, after), legs).refreshed == 3
    assert not evidence.interception(batch, Counters(before, before), legs).refreshed
