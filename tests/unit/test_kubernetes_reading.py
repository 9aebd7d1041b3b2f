"""What the lab on a cluster parses: the output of containerd, the kernel and the API, captured from a real one."""

import json
import time
from pathlib import Path

import pytest
from tests.unit.stub_provider import StubImages, StubNode

from merbridge_lab.adapters.image_reference import full_name, registry
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Unread
from merbridge_lab.labs.kubernetes import diagnostics, node_exec, pod_netns, pods, rules, topology, workload
from merbridge_lab.labs.kubernetes.pod_netns import Process

CAPTURED = Path(__file__).parents[1] / "captured" / "kind"
RULES = (CAPTURED.parent / "sleep.nft.rules").read_text()
NATIVE_RULES = (CAPTURED / "sleep.native.rules").read_text()

UID = "bd96bb07-3d44-40cc-a653-683af879e235"
CID = "ecce52e87f281d60ceafc41e6cac9b58e6ea17a39a522beb12cf6d3183526d38"
LOOKED = f"""\
1845 (a (b) c) S 1365 1845 1845 0 -1 4194560 821 0 0 0 0 1 0 0 20 0 1 0 868095 2560000 331 18446744073709551615
4026534339
sleep
0::/kubelet/kubepods/burstable/pod{UID}/{CID}
1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever
2: eth0    inet 10.244.0.5/24 brd 10.244.0.255 scope global eth0\\       valid_lft forever preferred_lft forever
"""
HANDS = node_exec.NodeToolsExec(StubNode())
NO_BACKEND = "# merlab: nat of sleep, backend=x uid=1 pid=2 started=3 netns=4"
NATIVE = """\
table inet istio-proxy-nat {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
	}
	chain istio-redirect {
	}
}
"""


def captured(name):
    return json.loads((CAPTURED / f"{name}.json").read_text())


# -- images


@pytest.mark.parametrize(
    ("ref", "host", "full"),
    [
        ("busybox", "docker.io", "docker.io/library/busybox:latest"),
        ("curlimages/curl:8", "docker.io", "docker.io/curlimages/curl:8"),
        ("docker.io/istio/pilot:1.30.4", "docker.io", "docker.io/istio/pilot:1.30.4"),
        ("ghcr.io/merbridge/merbridge", "ghcr.io", "ghcr.io/merbridge/merbridge:latest"),
        ("localhost:5000/x:1", "localhost:5000", "localhost:5000/x:1"),
        ("kindest/node:v1@sha256:00", "docker.io", "docker.io/kindest/node:v1@sha256:00"),
    ],
)
def test_names_of_images(ref, host, full):
    assert registry(ref) == host
    assert full_name(ref) == full


# -- the node


def test_tasks():
    found = pod_netns.read_tasks((CAPTURED / "tasks.txt").read_text())
    assert len(found) > 10
    assert all(len(cid) == 64 for cid in found)
    assert pod_netns.read_tasks("TASK PID STATUS\nabc 12 STOPPED\n") == {}


def test_a_process_whose_name_has_brackets():
    process = pod_netns.read_process(HANDS, LOOKED)
    assert (process.pid, process.started, process.netns, process.comm) == (1845, 868095, 4026534339, "sleep")
    assert process.addresses == ("10.244.0.5",)
    assert pod_netns.cgroup_names(process.cgroup) == f"pod{UID}/{CID}"


def test_the_cgroup_of_the_systemd_driver_tells_the_same():
    path = f"/kubelet.slice/kubelet-kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{CID}.scope"
    assert pod_netns.cgroup_names(path) == f"pod{UID}/{CID}"
    assert pod_netns.cgroup_names("/docker/x") == "/docker/x"


def test_rules_of_both_backends_and_native_chains():
    told = f"# a warning\n#= nft\n{RULES}#= legacy\n*nat\nCOMMIT\n#= chains\n{NATIVE}"
    seen = pod_netns.read_snapshot(told)
    assert set(seen.texts) == {"nft", "legacy"}
    assert seen.backend == "nft"
    assert len(seen.istio) == 18
    assert seen.native == ("table inet istio-proxy-nat",), "named as foreign where nft lists no rules of it"
    assert seen.source("sleep", "ISTIO_REDIRECT") == "iptables:sleep/nat/ISTIO_REDIRECT"


def test_istios_own_nftables_table_is_read_by_the_names_its_chains_have_in_iptables():
    seen = pod_netns.read_snapshot(f"#= nft\n#= chains\n{NATIVE}#= native\n{NATIVE_RULES}")
    assert (seen.backend, seen.backend_of("nat"), seen.native) == ("native", "native", ())
    assert len(seen.nat) == len(seen.istio) == NATIVE_RULES.count("counter packets")
    assert seen.packets("ISTIO_REDIRECT") == 14
    assert "-t nat -A ISTIO_REDIRECT meta l4proto tcp redirect to :15001" in seen.specs("nat")
    assert seen.source("sleep", "ISTIO_REDIRECT") == "nft:sleep/inet istio-proxy-nat/istio-redirect"


def test_flushed_that_table_has_chains_and_not_one_rule():
    seen = pod_netns.read_snapshot(f"#= nft\n#= chains\n{NATIVE}#= native\n{NATIVE}")
    assert (seen.backend, seen.nat, seen.native) == ("", (), ())
    assert seen.source("sleep") == "nft:sleep/inet istio-proxy-nat"


def test_another_native_table_is_not_istios():
    other = NATIVE.replace("istio-proxy-nat", "detour")
    seen = pod_netns.read_snapshot(f"#= nft\n#= chains\n{NATIVE}{other}#= native\n{NATIVE_RULES}")
    assert seen.native == ("table inet detour",)


def test_a_backend_without_tools_is_absent():
    """It is not certain that nft's is empty; legacy's is, and the node reports it if it is not."""
    assert isinstance(pod_netns.read_snapshot(f"#= legacy\n{RULES}").texts["nft"], Unread)
    assert set(pod_netns.read_snapshot(f"#= nft\n{RULES}").texts) == {"nft"}
    told = pod_netns.read_snapshot(f"#= nft\n{RULES}#= no_legacy\niptables-legacy-save is not on the node\n")
    assert "is not on the node" in str(told.texts["legacy"])
    assert pod_netns.read_snapshot("").texts == {}


# -- what a flush saves


@pytest.fixture
def process():
    return pod_netns.read_process(HANDS, LOOKED)


def test_what_was_saved_says_of_whom_it_is(process):
    text = f"{rules.header('sleep', 'nft', UID, process)}\n{RULES}"
    saved = rules.read(text)
    assert (saved.backend, saved.uid, saved.pid, saved.started, saved.netns) == ("nft", UID, 1845, 868095, 4026534339)


@pytest.mark.parametrize(
    "text",
    [
        "",
        RULES,
        "# merlab: nat of sleep, backend=nft\n",
        NO_BACKEND,
    ],
)
def test_what_is_not_such_a_file_is_not_taken_for_one(text):
    assert rules.read(text) is None


class Node:
    """A node with a file of saved rules, the existing processes, and the sandbox of a pod."""

    def __init__(self, monkeypatch, saved, processes, uid="", sandbox=None):
        self.processes, self.restored = {one.pid: one for one in (*processes, *([sandbox] if sandbox else []))}, []
        self.saved, self.uid, self.sandbox = saved, uid, sandbox
        self.node_exec = node_exec.NodeToolsExec(StubNode(execute=self.execute))
        monkeypatch.setattr(pod_netns, "look", self.look)
        monkeypatch.setattr(pod_netns, "script", self.script)

    def execute(self, argv):
        class Told:
            status, stdout = 0, ""

        if argv[0] == "cat":
            Told.status, Told.stdout = (0, self.saved) if self.saved else (1, "")
        if argv[0] == "rm":
            self.saved = None
        if "tasks" in argv:
            Told.stdout = (
                f"TASK PID STATUS\nsandbox {self.sandbox.pid} RUNNING\n" if self.sandbox else "TASK PID STATUS\n"
            )
        if "containers" in argv:
            Told.stdout = "sandbox\n" if self.sandbox and f"=={self.uid}," in argv[-1] else ""
        return Told

    def look(self, _node, pid):
        if pid not in self.processes:
            raise pod_netns.RestartedError("gone")
        return self.processes[pid]

    def script(self, process, _text, *_argv, **_):
        class Told:
            status, stdout = 0, RULES

        self.restored.append(process.pid)
        return Told


def _process(pid, *, started=868095, netns=4026534339):
    return Process(HANDS, pid, started, netns, "sleep", "", "")


@pytest.mark.parametrize(
    ("processes", "uid", "sandbox", "restored"),
    [
        pytest.param([_process(1845)], "", None, [1845], id="the same process"),
        pytest.param([_process(1845, started=9)], "other", _process(7, netns=5), [], id="its PID is another's"),
        pytest.param([], UID, _process(99), [99], id="the container ended, and the namespace is held by the sandbox"),
        pytest.param([], "other", _process(99, netns=5), [], id="the pod was recreated"),
        pytest.param([], "other", _process(99), [], id="recreated, and the inode is used again"),
        pytest.param([], UID, _process(99, netns=5), [], id="the node was restarted"),
        pytest.param([], "", None, [], id="there is no pod"),
    ],
)
def test_rules_go_back_into_the_very_namespace_they_were_taken_from_or_nowhere(
    monkeypatch, process, processes, uid, sandbox, restored
):
    saved = f"{rules.header('sleep', 'nft', UID, process)}\n{RULES}"
    node = Node(monkeypatch, saved, processes, uid, sandbox)
    pod_rules = rules.PodRules("sleep", node.node_exec, lambda _anew: None)
    assert pod_rules.restore() is True
    assert node.restored == restored
    assert node.saved is None
    assert pod_rules.restore() is False


def test_rules_that_did_not_come_back_stay_saved(monkeypatch, process):
    node = Node(monkeypatch, f"{rules.header('sleep', 'nft', UID, process)}\n{RULES}", [process])
    node.script = lambda *_a, **_k: type("Told", (), {"stdout": "*nat\nCOMMIT\n"})
    monkeypatch.setattr(pod_netns, "script", node.script)
    with pytest.raises(LabError, match="are not what was saved"):
        rules.PodRules("sleep", node.node_exec, lambda _anew: None).restore()
    assert node.saved


def test_a_file_that_merlab_did_not_write_is_left_alone(monkeypatch):
    node = Node(monkeypatch, "# mine\n", [])
    with pytest.raises(LabError, match="is not a file of rules that merlab saved"):
        rules.PodRules("sleep", node.node_exec, lambda _anew: None).restore()
    assert node.saved


# -- pods


@pytest.mark.parametrize("kind_", ["classic", "native"])
def test_sidecars_are_told_apart_by_where_they_stand(kind_):
    pod = pods.read(captured(f"pod-{kind_}"))
    assert pod.sidecar == kind_
    assert pod.ready
    assert pod.sidecar_ready
    assert set(pod.containers) == {"sleep", "istio-proxy"}
    assert pod.node == "merbridge-control-plane"


def test_a_pod_without_sidecar():
    told = captured("pod-classic")
    told["spec"]["containers"] = [one for one in told["spec"]["containers"] if one["name"] != "istio-proxy"]
    assert pods.read(told).sidecar == ""


def test_an_init_container_of_that_name_that_ends_is_no_sidecar():
    told = captured("pod-native")
    for one in told["spec"]["initContainers"]:
        one.pop("restartPolicy", None)
    assert pods.read(told).sidecar == ""


def test_no_pod_with_its_app_running_is_an_error():
    pod = pods.read(captured("pod-without-image"))
    with pytest.raises(LabError, match="no pod of sleep is running"):
        pods.running_pod([pod], topology.SLEEP)


# -- why a pod does not come up


def test_a_healthy_pod_is_no_trouble():
    assert diagnostics.diagnose([captured("pod-classic"), captured("pod-native")], 100, StubImages()) is None


def test_an_image_that_cannot_be_had_is_told_with_its_registry_and_the_way_to_load_it():
    found = diagnostics.diagnose([captured("pod-without-image")], 100, StubImages())
    assert "merlab.test/nothere:1" in found.what
    assert "from merlab.test" in found.what
    assert "i/o timeout" in found.what
    assert "stub pull merlab.test/nothere:1 && stub load merlab.test/nothere:1" in found.hint


def test_a_pod_without_a_place_says_what_is_short():
    assert "Insufficient cpu" in diagnostics.diagnose([captured("pod-without-place")], 100, StubImages()).what


def test_trouble_of_the_pods_of_before_is_not_that_of_the_new_ones():
    assert diagnostics.diagnose([captured("pod-without-place")], 1, StubImages()) is None
    ending = captured("pod-without-image")
    ending["metadata"]["deletionTimestamp"] = "2026-11-24T11:12:00Z"
    assert diagnostics.diagnose([ending], 100, StubImages()) is None


def _refusal(count=1, name="a"):
    # The timestamps are from a clock that is years ahead: nothing may depend on them.
    return {
        "type": "Warning",
        "reason": "FailedCreate",
        "message": "failed calling webhook",
        "count": count,
        "firstTimestamp": "2999-01-01T00:00:00Z",
        "lastTimestamp": "2999-01-01T00:00:00Z",
        "involvedObject": {"kind": "ReplicaSet", "name": "sleep-5cd55f4554"},
        "metadata": {"name": name, "creationTimestamp": "2999-01-01T00:00:00Z"},
    }


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_m8_refusals_of_before_this_wait_do_not_count_whatever_their_stamps():
    clock = Clock()
    memory = diagnostics.Memory(clock)
    for waited in (0, 30, 60):
        clock.now = 1000.0 + waited
        assert diagnostics.refused("sleep", [_refusal()], waited, memory) is None


@pytest.mark.parametrize("later", [_refusal(count=2), _refusal(name="b")])
def test_m8_what_is_refused_in_this_wait_is_tried_again_and_then_hopeless(later):
    clock = Clock()
    memory = diagnostics.Memory(clock)
    assert diagnostics.refused("sleep", [_refusal()], 0, memory) is None
    clock.now += 2
    assert diagnostics.refused("sleep", [_refusal(), later], 2, memory) is None, "refused only just now"
    clock.now += 10
    assert diagnostics.refused("sleep", [_refusal(), later], 12, memory) is None, "not waited for long"
    clock.now += 20
    assert "failed calling webhook" in diagnostics.refused("sleep", [_refusal(), later], 32, memory).what
    assert diagnostics.refused("helloworld-v1", [_refusal(), later], 32, memory) is None


def test_m8_how_long_a_pod_has_no_place_is_measured_by_the_wait_and_not_by_stamps():
    clock, pod = Clock(), captured("pod-without-place")
    for one in pod["status"]["conditions"]:
        one["lastTransitionTime"] = "2000-01-01T00:00:00Z"
    memory = diagnostics.Memory(clock)
    assert diagnostics.diagnose([pod], 6, StubImages(), memory=memory) is None, "another may just be ending"
    clock.now += 11
    assert "cannot be scheduled" in diagnostics.diagnose([pod], 17, StubImages(), memory=memory).what
    placed = captured("pod-classic")
    placed["metadata"] = pod["metadata"]
    assert diagnostics.diagnose([placed], 18, StubImages(), memory=memory) is None
    assert diagnostics.diagnose([pod], 19, StubImages(), memory=memory) is None, "it had a place meanwhile"


def test_m8_the_age_of_a_log_goes_on_while_the_machine_is_suspended(monkeypatch):
    asked = []

    class Api:
        def log(self, *_words, since):
            asked.append(since)
            return ""

    clock = {time.CLOCK_BOOTTIME: 100.0, time.CLOCK_MONOTONIC: 100.0}
    monkeypatch.setattr(workload.time, "clock_gettime", lambda number: clock[number])
    log = workload.SidecarLog(Api(), "pod")
    clock[time.CLOCK_BOOTTIME] += 3600  # asleep for an hour: the other clock did not move
    log.lines()
    assert asked == [3601]


def test_what_runs_and_is_never_ready_is_named():
    told = captured("pod-classic")
    for one in told["status"]["containerStatuses"]:
        one["ready"] = one["name"] != "istio-proxy"
    found = diagnostics.never_ready([told], "sleep", 60)
    assert found.container == "istio-proxy"
    assert diagnostics.all_run([told])
    assert not diagnostics.all_run([captured("pod-without-image")])
    assert not diagnostics.all_run([])


def test_warnings_of_an_autoscaler_are_left_out():
    noise = _refusal()
    noise["involvedObject"] = {"kind": "HorizontalPodAutoscaler", "name": "istiod"}
    told = diagnostics.told([_refusal(), noise])
    assert told == "replicaset sleep-5cd55f4554: FailedCreate: failed calling webhook"


# -- logs


def test_a_request_id_that_envoy_marked_for_tracing_is_still_ours():
    nonce = "11111111-2222-4333-8444-555555555555"
    assert workload.unmarked(nonce) == nonce
    assert workload.unmarked("11111111-2222-9333-8444-555555555555") == nonce
    assert workload.unmarked("-") == "-"


def test_the_access_log_stands_between_other_lines():
    line = (CAPTURED.parent / "sleep.access.log").read_text().splitlines()[-1]
    text = f"2026-11-24T10:30:19Z\tinfo\tEnvoy proxy is ready\n{line}\n"
    assert len(workload.read_log(text)) == 1
