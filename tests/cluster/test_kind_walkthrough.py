"""The walkthrough on a real Kubernetes with a real Istio, by the real command: what it shows, and what it leaves.

The tests share one lab, created from nothing, and continue from one to the next as a person would; each can run alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kind_host import (
    LONG,
    NODE,
    docker,
    held,
    in_node,
    kubectl,
    leftovers,
    merlab,
    move_to_legacy,
    native_rules,
    pod_of,
    rules,
    settled,
    stopped,
    words_for,
)
from tests.cluster import builds
from tests.merlab_cli import MERLAB, environment, told

from merbridge_lab.labs.kind import names
from merbridge_lab.labs.kind.node import DockerNode
from merbridge_lab.labs.kubernetes import topology
from merbridge_lab.labs.kubernetes.dataplanes import node_view
from schema_files import complaints

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# ruff: noqa: ARG001 - what a test needs to be there, it does not always use

pytestmark = pytest.mark.cluster

HELLO = ("curl", "-s", "helloworld:5000/hello")
#: What a lab without a dataplane skips, and the rest.
SKIPPED, HOLD = {3, 4, 5}, {0, 1, 2, 6, 7, 8, 9}


@pytest.fixture(scope="module")
def before() -> Mapping[str, object]:
    """This machine without a lab."""
    assert held(merlab("down"))
    return leftovers()


@pytest.fixture(scope="module")
def fresh(before: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    """The report of an `up` from nothing."""
    done = merlab("up", "--json")
    assert held(done)
    yield told(done)
    assert held(merlab("down"))


@pytest.fixture
def lab(fresh: dict[str, Any]) -> None:
    """The lab that all share; a test that changes it restores it."""


def step(report: Mapping[str, Any], number: int) -> dict[str, Any]:
    return next(dict(each) for each in report["steps"] if each["number"] == number)


def readings(report: Mapping[str, Any], number: int) -> dict[str, tuple[Any, Any]]:
    """Return the values before and after, by source: of a step's checks and their controls."""
    found = {}
    for check in step(report, number)["checks"]:
        for reading in (*check["evidence"], *((check["control"] or {}).get("evidence") or ())):
            found[reading["source"]] = reading["before"], reading["after"]
    return found


def shown(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert held(done)
    report = told(done)
    assert complaints("run", report) == []
    return report


# -- up


def test_from_nothing_seven_steps_hold_and_three_are_skipped_with_the_reason(fresh: dict[str, Any]) -> None:
    assert complaints("run", fresh) == []
    assert (fresh["lab"], fresh["verdict"], fresh["error"]) == ("kind", "pass", None)
    assert fresh["skipped"] >= len(SKIPPED)
    outcomes = {each["number"]: each["outcome"] for each in fresh["steps"]}
    assert outcomes == {**dict.fromkeys(HOLD, "pass"), **dict.fromkeys(SKIPPED, "skip")}
    assert all("no dataplane" in step(fresh, number)["reason"] for number in SKIPPED)
    assert all(step(fresh, number)["checks"] for number in HOLD)
    assert all(step(fresh, number)["acted"] for number in HOLD)


def test_on_a_healthy_lab_up_makes_nothing_anew(lab: None) -> None:
    before = [pod_of(spec.selector)["metadata"]["uid"] for spec in topology.WORKLOADS], rules()
    report = shown(merlab("up", "--json"))
    assert [step(report, number)["acted"] for number in (1, 2)] == [False, False]
    assert ([pod_of(spec.selector)["metadata"]["uid"] for spec in topology.WORKLOADS], rules()) == before


def test_what_an_older_merlab_kept_in_the_cluster_is_taken_over(lab: None) -> None:
    """As commit aaab070 wrote it: with the kubeconfig that got the cluster's context, a path of this machine."""
    name = ("configmap", topology.SETTINGS, "-n", topology.NAMESPACE)
    kept = json.loads(kubectl("get", *name, "-o", "json"))["data"]
    older = json.dumps({**json.loads(kept["settings.json"]), "kubeconfig": "/etc/shadow"})
    kubectl("patch", *name, "--type=merge", f"--patch={json.dumps({'data': {**kept, 'settings.json': older}})}")
    uids = [pod_of(spec.selector)["metadata"]["uid"] for spec in topology.WORKLOADS]
    assert held(merlab("step", "6"))
    assert held(merlab("up", "-q"))
    assert [pod_of(spec.selector)["metadata"]["uid"] for spec in topology.WORKLOADS] == uids


# -- steps


def test_step_6_is_served_by_both_sidecars_by_way_of_the_rules(lab: None) -> None:
    seen = readings(shown(merlab("step", "6", "--json")), 6)
    moved_from, moved_to = seen["iptables:sleep/nat/ISTIO_REDIRECT"]
    assert moved_to - moved_from == 4
    logged = {source: after for source, (_, after) in seen.items() if source.startswith("envoy:")}
    assert logged["envoy:sleep/access"] == 4
    assert sum(count for source, count in logged.items() if source.startswith("envoy:helloworld-")) == 4


def test_a_proxy_that_leads_nowhere_is_not_asked(lab: None) -> None:
    nowhere = "http://127.0.0.1:9"
    assert held(merlab("step", "6", https_proxy=nowhere, http_proxy=nowhere, no_proxy="example.com"))


def test_step_8_shows_the_rules_and_that_they_move(lab: None) -> None:
    report = shown(merlab("step", "8", "--json"))
    moved_from, moved_to = readings(report, 8)["iptables:sleep/nat/ISTIO_REDIRECT"]
    assert moved_to - moved_from == 4
    # A person who types what is shown sees what merlab saw.
    listing = next(line for line in step(report, 8)["commands"] if line.endswith("-vnL ISTIO_REDIRECT"))
    assert (
        "redir ports 15001"
        in subprocess.run(("sh", "-c", listing), check=True, capture_output=True, text=True, timeout=LONG).stdout
    )


def test_step_9_flushed_is_closed_by_the_servers_sidecar_and_the_rules_come_back(lab: None) -> None:
    before = rules()
    report = shown(merlab("step", "9", "--json"))
    assert {check["name"] for check in step(report, 9)["checks"]} == {
        "rules.were_absent",
        "rules.were_untouched",
        "rules.flushed_is_closed",
        "rules.restored",
    }
    seen = readings(report, 9)
    moved_from, moved_to = seen["iptables:sleep/nat/ISTIO_REDIRECT"]
    assert moved_to - moved_from == 4, "the control: the same requests with the rules present"
    assert seen["envoy:sleep/access"][1] == 4
    assert rules() == before


def test_kept_flushed_a_request_is_closed_until_the_rules_are_restored(lab: None) -> None:
    before = rules()
    assert held(merlab("step", "9", "--keep"))
    assert told(merlab("status", "--json"))["flushed"] == ["sleep"]
    assert not any(line.startswith("-A") for line in rules())
    closed = merlab("exec", "sleep", "--", *HELLO)
    assert closed.returncode == 56, "curl: connection reset by peer"
    assert told(merlab("restore", "--json"))["restored"] == ["sleep"]
    assert rules() == before
    assert merlab("exec", "sleep", "--", *HELLO).stdout.startswith("Hello version: v")


def test_verify_is_never_a_pass_here(lab: None) -> None:
    done = merlab("verify", "--json")
    assert done.returncode == 3
    report = told(done)
    assert report["verdict"] == "error"
    assert "no dataplane" in report["error"]["what"]


# -- by hand


def test_status_tells_pods_sidecars_and_rules_as_they_are(lab: None) -> None:
    status = told(merlab("status", "--json"))
    assert complaints("status", status) == []
    assert (status["lab"], status["up"], status["flushed"], status["problems"]) == ("kind", True, [], [])
    found = {one["name"]: one for one in status["workloads"]}
    assert set(found) == {spec.name for spec in topology.WORKLOADS}
    for spec in topology.WORKLOADS:
        pod = pod_of(spec.selector)
        assert found[spec.name]["ip"] == pod["status"]["podIP"]
        assert (found[spec.name]["sidecar"], found[spec.name]["sidecar_kind"]) == (True, "classic")
        assert pod["status"]["podIP"] in in_node("nsenter", "-t", str(found[spec.name]["pid"]), "-n", "hostname", "-I")
    ours = sum(line.startswith("-A") for line in rules())
    assert found["sleep"]["rules"] == {"backend": "nft", "istio_rules": ours}


def test_exec_is_the_app_and_passes_its_status_on(lab: None) -> None:
    done = merlab("exec", "sleep", "--", *HELLO)
    assert (done.returncode, done.stdout[:16]) == (0, "Hello version: v")
    assert merlab("exec", "sleep", "--", "sh", "-c", "exit 7").returncode == 7
    name = merlab("exec", "helloworld-v1", "--", "cat", "/etc/hostname").stdout.strip()
    assert name == pod_of("app=helloworld,version=v1")["metadata"]["name"]


def test_a_shell_in_the_network_namespace_has_the_right_iptables_first(lab: None) -> None:
    """script(1) gives it the terminal it asks for."""
    line = f"'{MERLAB}' shell sleep --netns --lab kind"
    done = subprocess.run(
        ("script", "-qec", line, "/dev/null"),
        input="iptables -t nat -S ISTIO_REDIRECT; ip -o -4 address show\nexit\n",
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
        env=environment(),
    )
    assert "-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001" in done.stdout
    assert pod_of("app=sleep")["status"]["podIP"] in done.stdout


def test_what_a_person_would_type_makes_the_same(lab: None) -> None:
    """kubectl finds no difference between the cluster and what `merlab manifests` prints."""
    images = [word for word in words_for("up") if word.startswith("--image")]
    printed = subprocess.run((MERLAB, "manifests", *images), check=True, capture_output=True, text=True, timeout=LONG)
    assert kubectl("diff", "--server-side", "--force-conflicts", "-f", "-", stdin=printed.stdout) == ""


def test_the_shown_commands_work_for_a_reader_who_types_them_all(lab: None) -> None:
    """A reader does not have the context: the command that makes it known is shown first, and once typed, no more."""
    kubeconfig = Path(os.environ["KUBECONFIG"])
    kubeconfig.unlink(missing_ok=True)
    try:
        commands = step(shown(merlab("step", "6", "--json")), 6)["commands"]
        assert commands[0] == f"kind export kubeconfig --name {names.CLUSTER}"
        for line in commands:
            done = subprocess.run(("sh", "-c", line), check=False, capture_output=True, text=True, timeout=LONG)
            assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Hello version: v")
        assert step(shown(merlab("step", "6", "--json")), 6)["commands"] == commands[1:]
    finally:
        kubeconfig.unlink(missing_ok=True)


def test_a_sysdump_has_what_a_report_needs_and_no_key(lab: None, tmp_path: Path) -> None:
    done = subprocess.run(
        (MERLAB, "sysdump", "--lab", "kind"), cwd=tmp_path, capture_output=True, text=True, check=True, timeout=LONG
    )
    (file,) = tmp_path.glob("*.tar.gz")
    assert file.name in done.stdout
    names = subprocess.run(("tar", "-tzf", file), capture_output=True, text=True, check=True).stdout
    for wanted in ("doctor.json", "status.json", "last-report.json", "sleep/rules.txt", "default/events.json"):
        assert wanted in names
    text = subprocess.run(("tar", "-xOzf", file), capture_output=True, text=True, check=True, errors="replace").stdout
    assert "ISTIO_REDIRECT" in text
    assert "PRIVATE KEY" not in text
    assert "client-key-data" not in text


def test_doctor_finds_nothing_missing(lab: None) -> None:
    found = told(merlab("doctor", "--json"))
    assert complaints("doctor", found) == []
    assert found["able"]
    names = {check["name"] for check in found["checks"]}
    assert names >= {"docker.answers", "docker.rootful", "docker.memory", "docker.disk", "docker.cgroup"}
    assert names >= {"kernel.inotify", "docker.ports", "docker.proxy", "cluster.versions", "cluster.name"}


# -- what is asked for


def test_another_node_image_is_refused_not_ignored(lab: None) -> None:
    done = merlab("up", "--json", "--kind-image", "merlab.test/kindest/node:v1.35.9")
    assert done.returncode == 3
    assert "merlab.test/kindest/node:v1.35.9" in told(done)["error"]["what"]


def test_native_sidecars_are_told_by_the_pod_and_all_holds_with_them(lab: None) -> None:
    """From here on, the lab has native ones: what is chosen stays chosen until it is recreated."""
    assert step(shown(merlab("up", "--json", "--until", "2", "--sidecars", "native")), 2)["outcome"] == "pass"
    spec = pod_of("app=sleep")["spec"]
    assert [one["name"] for one in spec["containers"]] == ["sleep"]
    assert topology.SIDECAR in [one["name"] for one in spec["initContainers"]]
    report = shown(merlab("step", "6..9", "--json"))
    assert {each["outcome"] for each in report["steps"]} == {"pass"}
    status = told(merlab("status", "--json"))
    assert ({one["sidecar_kind"] for one in status["workloads"]}, status["problems"]) == ({"native"}, [])


def test_rules_in_nftables_own_table_are_read_flushed_and_put_back(lab: None) -> None:
    native = ("--istio-set", "values.global.nativeNftables=true")
    assert step(shown(merlab("up", "--json", "--until", "2", *native)), 2)["outcome"] == "pass"
    before = native_rules()
    assert any("redirect to :15001" in rule for rule in before)
    assert [rule for rule in rules() if rule.startswith("-A")] == [], "iptables shows nothing of them"
    report = shown(merlab("step", "6..9", "--json"))
    assert {each["outcome"] for each in report["steps"]} == {"pass"}
    was, now = readings(report, 8)["nft:sleep/inet istio-proxy-nat/istio-redirect"]
    assert now - was >= 4
    assert native_rules() == before
    assert held(merlab("step", "9", "--keep"))
    assert native_rules() == []
    assert told(merlab("status", "--json"))["flushed"] == ["sleep"]
    assert held(merlab("restore"))
    assert native_rules() == before
    flush, _, _, put_back = step(report, 9)["commands"][-4:]
    for line, left in ((flush, []), (put_back, before)):
        subprocess.run(("sh", "-c", line), check=True, capture_output=True, timeout=LONG)
        assert native_rules() == left, line
    assert held(merlab("up", "-q", "--until", "2")), "not asked for any more, they are iptables' again"
    assert native_rules("app=sleep") != before


def test_rules_in_legacy_tables_are_found_flushed_and_put_back(lab: None) -> None:
    made = rules()
    move_to_legacy()
    before = rules(backend="legacy")
    assert [rule for rule in before if rule.startswith("-A")] == [rule for rule in made if rule.startswith("-A")]
    try:
        report = shown(merlab("step", "8..9", "--json"))
        assert {each["outcome"] for each in report["steps"]} == {"pass"}
        assert any("iptables-legacy -t nat -F" in line for line in step(report, 9)["commands"])
        assert rules(backend="legacy") == before
        assert held(merlab("step", "9", "--keep", "-q"))
        assert not any(rule.startswith("-A") for rule in rules(backend="legacy"))
        assert held(merlab("restore"))
        assert rules(backend="legacy") == before
    finally:
        kubectl("delete", "pod", "-l", "app=sleep", "--wait")
        kubectl("rollout", "status", "deployment/sleep", "--timeout=60s")


def test_where_the_node_has_no_tools_a_helper_pod_enters(lab: None) -> None:
    tools = ("/usr/sbin/xtables-nft-multi", "/usr/sbin/xtables-legacy-multi")
    before = rules()
    in_node("mkdir", "/hidden")
    in_node("mv", *tools, "/hidden")
    try:
        report = shown(merlab("step", "9", "--json"))
        assert {each["outcome"] for each in report["steps"]} == {"pass"}
        assert any(f"exec {topology.HELPER} --" in line for line in step(report, 9)["commands"])
        assert helpers() == [], "it goes with the command"
        assert told(merlab("status", "--json"))["problems"] == []
        # S8: the next command removes what a killed merlab left, whatever it does.
        assert stopped("step", "9", at=lambda _: bool(helpers()), by=signal.SIGKILL).returncode == -signal.SIGKILL
        assert len(helpers()) == 1
        assert held(merlab("up", "-q", "--until", "2"))
        assert helpers() == []
    finally:
        in_node("sh", "-c", "mv /hidden/* /usr/sbin/ && rmdir /hidden")
    assert rules() == before


def helpers() -> list[str]:
    """Return the pods with which merlab enters others."""
    return [
        name for name in kubectl("get", "pods", "-n", topology.HELPERS, "-o", "name").split() if topology.HELPER in name
    ]


def test_c01_the_nodes_first_process_is_in_a_child_of_its_cgroup_and_the_pods_are_its_all_the_same(lab: None) -> None:
    node = node_view.find(DockerNode(NODE))
    assert node_view.cgroup_of(Path(f"/proc/{node.pid}")) == f"{node.cgroup_path}/init.scope"
    # One in the node's own files: its PID there is another one here.
    found = in_node("ctr", "-n", "k8s.io", "tasks", "ls").splitlines()[1:]
    pods = [node_view.cgroup_of(node.process(int(line.split()[1]))) for line in found if line.endswith("RUNNING")]
    assert pods
    assert all(node.has(path) for path in pods)
    assert not any("/init.scope" in path for path in pods)
    assert not node.has(node_view.cgroup_of(Path("/proc/self")))
    assert node.cgroup_id(1) == (node.cgroup / "init.scope").stat().st_ino


# -- down


def test_down_keeps_the_cluster_where_it_is_asked_to(lab: None) -> None:
    def made() -> str:
        everything = "deployments,services,serviceaccounts,configmaps,pods,customresourcedefinitions,namespaces"
        webhooks = "mutatingwebhookconfigurations,validatingwebhookconfigurations"
        return kubectl("get", f"{everything},{webhooks}", "--all-namespaces", "-o", "name")

    try:
        assert "istio" in made()
        assert held(merlab("down", "--keep-cluster"))
        assert docker("inspect", "--format", "{{.State.Running}}", NODE).strip() == "true"
        left = made()
        for word in ("istio", "sleep", "helloworld", "merlab"):
            assert word not in left
        assert "istio-injection" not in kubectl("get", "namespace", topology.NAMESPACE, "-o", "yaml")
        assert in_node("sh", "-c", f"ls -A {topology.STATE} 2>/dev/null || true") == ""
    finally:
        assert held(merlab("up", "-q", "--until", "2"))


def test_down_leaves_nothing_but_the_images_which_it_names(
    fresh: dict[str, Any], before: Mapping[str, object], tmp_path: Path
) -> None:
    assert leftovers() != before
    asked = tmp_path / "kubeconfig"
    assert held(merlab("up", "-q", "--until", "1", "--kubeconfig", str(asked)))
    assert "kind-merbridge" in asked.read_text()
    subprocess.run(("kind", "export", "kubeconfig", "--name", names.CLUSTER), check=True, capture_output=True)
    assert "kind-merbridge" in Path(os.environ["KUBECONFIG"]).read_text()
    done = merlab("down", "--json")
    assert held(done)
    (stays,) = told(done)["stays"]
    for image in (builds.node(), "pilot", "proxyv2", "curl", "helloworld-v1", "helloworld-v2"):
        assert builds.ref(image) in stays.partition("docker image rm")[2]
        assert docker("image", "inspect", "--format", "{{.Id}}", builds.ref(image))
    for config in (asked, Path(os.environ["KUBECONFIG"])):
        assert "kind-merbridge" not in config.read_text()
    Path(os.environ["KUBECONFIG"]).unlink()
    assert settled(leftovers, {**before, "kubeconfig": None}) == {**before, "kubeconfig": None}
    assert told(merlab("down", "--json"))["removed"] is False
    assert json.loads(merlab("status", "--json").stdout)["up"] is False


def test_an_absent_lab_is_no_pass_and_says_what_makes_one(before: Mapping[str, object]) -> None:
    assert held(merlab("down"))
    for words in (("step", "6"), ("verify",), ("exec", "sleep", "--", "true")):
        done = merlab(*words)
        assert done.returncode == 3
        assert "no lab is up" in done.stderr
        assert "merlab up" in done.stderr
    assert told(merlab("status", "--json"))["up"] is False
