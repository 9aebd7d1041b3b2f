"""What upstream Merbridge prints, traces and keeps in its maps, parsed; and its DaemonSet, changed and compared.

The trace lines of formats without a capture are written from upstream's sources, release by release.
"""

import copy
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import manifests
from merbridge_lab.labs.kubernetes.dataplanes import daemonsets, node_trace
from merbridge_lab.labs.kubernetes.dataplanes.merbridge import (
    evidence,
    installation,
    limitations,
    manifest,
    preflight,
    rollout,
)
from merbridge_lab.labs.kubernetes.settings import Settings, versions
from merbridge_lab.labs.options import Options
from merbridge_lab.merbridge import kernel_objects, log, mbctl, trace

OTHERS_NAME = """\
kind: DaemonSet
metadata: {name: mb}
spec:
  selector: {matchLabels: {a: b}}
  template: {spec: {containers: []}}
"""


class Node:
    """A node whose tracefs is a plain folder."""

    def __init__(self, tracing):
        self.tracing = tracing


# -- the trace


def line(said, comm="curl", pid=4242, mark="bpf_trace_printk", flags="...11"):
    return f"{comm:>16}-{pid:<7} [001] {flags}  4520.123456: {mark}: {said}"


@pytest.mark.parametrize(
    ("said", "kind", "ip", "port"),
    [
        ("[debug] call from user container: cookie: 77, ip: 10.96.0.10, port: 5000", "connect", "10.96.0.10", 5000),
        ("[debug] call from user container: cookie: -77, ip: 10.96.0.10, port: 80", "connect", "10.96.0.10", 80),
        ("[debug] call from user container: cookie: 77, ip: 0x400600a, port: 5000", "connect", "10.96.0.4", 5000),
        ("[debug] call from user container: ip: 0x400600a, port: 5000", "connect", "10.96.0.4", 5000),
        ("[debug] call from user container: cookie: 7, ip: fd00::a, port: 5000", "connect", "fd00::a", 5000),
        ("[debug] call from sidecar container: cookie: 7, ip: 10.0.0.7, port: 80", "sidecar_connect", "10.0.0.7", 80),
        ("[debug] dest ip: 10.96.0.1 not in this node, bypass", "elsewhere", "10.96.0.1", 0),
        ("[debug] dest ip: 0x400600a not in this node, bypass", "elsewhere", "10.96.0.4", 0),
        ("[debug] get current pod ip error", "no_pod_ip", "", 0),
        ("[debug] enovy to other, rewrite dst port from -30573 to 15006", "to_sidecar", "", 15006),
        ("[debug] can not get port listen for cgroup(3341)", "not_in_mesh", "", 0),
        ("[debug] origin dst: addr: 10.244.0.7:5000", "original_dst", "10.244.0.7", 5000),
        ("[debug] optname: 80, dst: addr: 10.244.0.7:15006", "asks", "10.244.0.7", 15006),
        ("[debug] redirect 91 bytes with eBPF successfully", "redirect", "", 0),
        ("[debug] redirect 91 bytes with eBPF successfully, src: 127.0.0.1, dst: 10.0.0.2", "redirect", "10.0.0.2", 0),
        ("[debug] detected process 4031's ip is 10.244.0.6", "detected", "10.244.0.6", 0),
        ("incorrect connection: cookie=-5", "reconnect", "", 0),
        ("[debug] successfully deal DNS redirect query", "dns", "", 0),
        ("[debug] ignored dest ranges by exclude_out_ranges, ip: 10.0.0.1", "policy", "", 0),
        ("[debug] dest port 5000 not in pod(10.244.0.6)'s include_out_ports, ignored.", "policy", "", 0),
        ("write cookie_original_dst failed", "failure", "", 0),
        ("failed to get origin", "failure", "", 0),
    ],
)  # fmt: skip
def test_each_format_of_each_release_is_known(said, kind, ip, port):
    event = trace.parse(line(said))
    assert (event.kind, event.ip, event.port) == (kind, ip, port)
    assert " " in event.sentence()
    assert "{" not in event.sentence()


@pytest.mark.parametrize("mark", ["bpf_trace_printk", "0", "0x1", "0x00000001"])
@pytest.mark.parametrize("comm", ["curl", "wrk:worker_0", "<...>", "my own app-2", "a b"])
@pytest.mark.parametrize("flags", ["d..31", "...11", "d...", ".....1"])
def test_the_kernels_part_of_a_line(mark, comm, flags):
    event = trace.parse(line("[debug] redirect 91 bytes with eBPF successfully", comm=comm, mark=mark, flags=flags))
    assert (event.comm, event.pid, event.seconds, event.size) == (comm, 4242, 4520.123456, 91)


@pytest.mark.parametrize(
    "said", ["[merlab] redirect pair=1 bytes=2", "hello", "some other program failed: error 5", "redirect 9 apples"]
)
def test_lines_of_others_are_not_upstreams(said):
    assert trace.parse(line(said)) is None


def test_what_was_dialled_elsewhere_is_left_out():
    said = [
        "[debug] call from user container: cookie: 77, ip: 10.96.0.10, port: 5000",
        "[debug] call from user container: cookie: 78, ip: 10.96.0.99, port: 443",
        "[debug] redirect 91 bytes with eBPF successfully",
    ]
    events = [trace.parse(line(each)) for each in said]
    assert [event.raw for event in evidence.of_requests(events, frozenset({"10.96.0.10"}))] == [
        events[0].raw,
        events[2].raw,
    ]


# -- the log


@pytest.mark.parametrize(
    ("said", "cgroup", "issue"),
    [
        ("Makefile:87: *** It looks like your system does not have cgroupv2 enabled, or the automatic", True, 60),
        ("Error: failed to pin program cgroup/connect4", True, 106),
        ("Error: failed to attach program", True, 38),
        ('level=fatal msg="failed to attach ebpf programs: unexpected exit code: 2"', True, 38),
        ("Error: invalid attach type", True, 38),
        ("mb_connect.c:17:10: fatal error: 'linux/bpf.h' file not found", False, 356),
        ("libbpf: map 'sock_pair_map': failed to create: Invalid argument(-22)", False, 270),
        ('level=fatal msg="failed to load ebpf programs: unexpected exit code: 2"', False, 127),
    ],
)  # fmt: skip
def test_crashes_are_known_by_upstreams_words(said, cgroup, issue):
    crash = log.crash(f"make load\nsome other line\n{said}\nmake: *** [Makefile:9: load] Error 2\n")
    assert (crash.cgroup, crash.issue) == (cgroup, issue)
    assert crash.said == said.strip()
    assert crash.link.endswith(f"/issues/{issue}")


def test_the_cause_of_a_crash_wins_over_what_follows_from_it():
    said = "It looks like your system does not have cgroupv2 enabled\nfailed to load ebpf programs: exit code 2"
    assert log.crash(said).issue == 60


def test_the_order_of_two_streams_does_not_matter():
    said = "failed to load ebpf programs: exit code 2\nx.c:1:1: fatal error: 'linux/bpf.h' file not found\n"
    assert log.crash(said).issue == 356


def test_a_log_of_other_words_is_no_known_crash_and_ready_is_read():
    assert log.crash("starting\nall is well\n") is None
    assert not log.ready("starting")
    assert log.ready('time="…" level=info msg="Pod Watcher Ready" func="controller.Run()"')
    assert log.tail("\n".join(map(str, range(40)))).splitlines()[0] == "28"


# -- the debug flag


MBCTL = ["/app/mbctl", "-m", "istio"]


@pytest.mark.parametrize(
    ("container", "changed"),
    [
        ({"args": MBCTL}, {"args": ["/app/mbctl", "-d", "-m", "istio"]}),
        ({"command": MBCTL}, {"command": ["/app/mbctl", "-d", "-m", "istio"]}),
        ({"command": ["mbctl"], "args": ["-m", "istio"]}, {"command": ["mbctl", "-d"], "args": ["-m", "istio"]}),
        ({"args": ["-m", "istio"]}, {"args": ["-d", "-m", "istio"]}),
        ({}, {"args": ["-d"]}),
        ({"command": ["sh", "-c", "mbctl -m istio"]}, {"command": ["sh", "-c", "mbctl -d -m istio"]}),
        (
            {"args": ["sh", "-c", "[ -d /host ] && /app/mbctl -m istio; sleep 1"]},
            {"args": ["sh", "-c", "[ -d /host ] && /app/mbctl -d -m istio; sleep 1"]},
        ),
    ],
)  # fmt: skip
def test_the_flag_goes_after_mbctl_wherever_that_stands_and_comes_off_again(container, changed):
    before = copy.deepcopy(container)
    assert mbctl.with_debug(container) == changed
    assert container == before
    assert mbctl.debug(changed)
    assert not mbctl.debug(container)
    assert mbctl.with_debug(changed) == changed
    off = mbctl.without_debug(changed)
    assert not mbctl.debug(off)
    assert off in (container, {"args": []})


def test_a_flag_at_the_end_of_a_shells_line_comes_off_and_anothers_stays():
    container = {"args": ["sh", "-c", "[ -d /host ] && mbctl -m istio -d"]}
    assert mbctl.debug(container)
    assert mbctl.without_debug(container) == {"args": ["sh", "-c", "[ -d /host ] && mbctl -m istio"]}


def test_where_the_flag_comes_to_stand():
    assert mbctl.place_of_flag({"args": MBCTL}) == "args/1"
    assert mbctl.place_of_flag({"command": ["mbctl"], "args": ["-m", "istio"]}) == "command/1"
    assert mbctl.place_of_flag({"args": ["-m", "istio"]}) == "args/0"


@pytest.mark.parametrize("flag", ["-d", "-d=true", "--debug", "--debug=true"])
def test_a_flag_that_is_there_already_stays_as_it_is(flag):
    container = {"args": [*MBCTL, flag]}
    assert mbctl.with_debug(container) == container
    assert mbctl.without_debug(container) == {"args": MBCTL}


def test_the_excerpt_is_yaml():
    told = yaml.safe_load(mbctl.excerpt({"args": ["/app/mbctl", "-d", "--use-reconnect=true"]}))
    assert told == {"args": ["/app/mbctl", "-d", "--use-reconnect=true"]}


# -- maps


def test_a_connection_is_looked_up_by_addresses_and_ports_in_the_networks_order():
    ends = "127.0.0.1:41234", "127.128.0.5:15001"
    wide, mapped = kernel_objects.pairs(*ends, 36)
    assert len(wide) == len(mapped) == 36
    assert wide[12:16] == mapped[12:16] == bytes([127, 0, 0, 1])
    assert wide[28:32] == mapped[28:32] == bytes([127, 128, 0, 5])
    assert wide[32:] == mapped[32:] == struct.pack("!HH", 41234, 15001)
    assert not any(wide[:12])
    assert mapped[8:12] == mapped[24:28] == b"\0\0\xff\xff"
    assert kernel_objects.pairs(*ends, 12) == [wide[12:16] + wide[28:32] + wide[32:]]
    assert kernel_objects.pairs(*ends, 20) == []


def test_where_it_was_meant_to_go():
    ip, port = bytes([10, 96, 0, 10]), struct.pack("!H", 5000)
    assert kernel_objects.read_wanted(bytes(12) + ip + struct.pack("=I", 77) + port + b"\1\0") == "10.96.0.10:5000"
    assert kernel_objects.read_wanted(struct.pack("=I", 77) + ip + port + b"\1\0") == "10.96.0.10:5000"
    assert kernel_objects.read_pod(bytes(12) + ip) == kernel_objects.read_pod(ip) == "10.96.0.10"


# -- the manifest


@pytest.fixture
def settings():
    return Settings.default()


@pytest.fixture
def daemonset(settings):
    return manifest.daemonset(manifest.objects(settings))


def old(tmp_path, path="/sys/fs", policy="Always"):
    """Return a manifest like those of the first releases: another hostPath, an image that is always pulled."""
    text = manifests.text("merbridge", Settings.default())
    text = text.replace("mountPath: /sys/fs/cgroup", f"mountPath: {path}").replace(
        "path: /sys/fs/cgroup", f"path: {path}"
    )
    file = tmp_path / "old.yaml"
    file.write_text(text.replace("imagePullPolicy: IfNotPresent", f"imagePullPolicy: {policy}"))
    return str(file)


def test_ours_is_for_the_last_release_and_takes_a_loaded_image(settings, daemonset):
    container = manifest.main(daemonset)
    assert container["image"] == settings.images["merbridge"] == "ghcr.io/merbridge/merbridge:0.8.1"
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert not mbctl.debug(container)
    assert manifest.mend(copy.deepcopy(daemonset), "") == ""


def test_another_image_and_another_manifest(settings, tmp_path):
    asked = settings.asked(Options(images={"merbridge": "my/merbridge:1"}))
    assert manifest.main(manifest.daemonset(manifest.objects(asked)))["image"] == "my/merbridge:1"
    named = settings.asked(Options(merbridge_manifest=old(tmp_path)))
    container = manifest.main(manifest.daemonset(manifest.objects(named)))
    assert container["imagePullPolicy"] == "IfNotPresent", "Always defeats an image that was loaded"
    assert yaml.safe_load_all(manifests.text("merbridge", named))
    assert named.differ_from(settings) == [], "the mesh is not recreated for it"
    assert Settings.from_json(asked.to_json()) == asked
    assert named.asked(Options()).merbridge_manifest == named.merbridge_manifest, "what the lab was made with stays"
    assert named.asked(Options(merbridge_manifest="merlab")).merbridge_manifest == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("kind: [", "is not a Kubernetes manifest"),
        ("just words", "is not a Kubernetes manifest"),
        ("kind: Job", "holds a Job, which merlab does not apply"),
        ("kind: ConfigMap", "holds 0 DaemonSets"),
        ("kind: DaemonSet\nmetadata: {name: merbridge, namespace: istio-system}", "is incomplete: it lacks 'spec'"),
        (
            OTHERS_NAME,
            "is default/mb; merlab looks for it at istio-system/merbridge",
        ),
    ],
)
def test_a_manifest_that_is_none_says_so(settings, tmp_path, content, said):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(LabError, match=said):
        manifest.objects(settings.asked(Options(merbridge_manifest=str(tmp_path / "bad.yaml"))))


def test_a_manifest_that_is_no_text_says_so(settings, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LabError, match="cannot be read: it is not text"):
        manifest.objects(settings.asked(Options(merbridge_manifest=str(tmp_path / "bad.yaml"))))


def test_a_manifest_is_found_again_from_another_folder(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings.asked(Options(merbridge_manifest="mine.yaml")).merbridge_manifest == str(tmp_path / "mine.yaml")
    for name in ("release", "https://example.org/all.yaml"):
        assert settings.asked(Options(merbridge_manifest=name)).merbridge_manifest == name


def test_what_was_applied_with_it_is_noted_and_a_namespace_is_not(settings):
    objects = manifest.objects(settings)
    daemonset = installation.with_notes(
        manifest.daemonset(objects), {installation.OBJECTS: installation.paths(objects)}
    )
    assert sorted(installation.objects_of(daemonset)) == sorted(installation.objects_of(None))
    assert all(daemonsets.is_marked(daemonsets.marked(one)) for one in objects)
    assert not daemonsets.is_marked({"metadata": {"name": "merbridge"}})
    assert json.loads(installation.paths([{"kind": "Namespace", "metadata": {"name": "istio-system"}}])) == []


def test_a_container_that_runs_is_starting_however_often_it_was_ended_before():
    running = {"restartCount": 5, "ready": False, "state": {"running": {}}}
    waits = {**running, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    assert rollout._crashes({"status": {"containerStatuses": [running]}}) == 0
    assert rollout._crashes({"status": {"containerStatuses": [waits]}}) == 5


def test_buffers_of_merlabs_that_are_gone_are_removed_and_no_others(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()", "merlab"], stdin=subprocess.PIPE) as active_pods:
        gone = subprocess.Popen(["true"])
        gone.wait()
        others = [f"merlab.node-{active_pods.pid}", "merlab", f"merlab-trace-{gone.pid}", "somebody"]
        for name in (*others, f"merlab.node-{gone.pid}"):
            (tmp_path / "instances" / name).mkdir(parents=True)
        node_trace.sweep(Node(tmp_path))
        assert sorted(each.name for each in (tmp_path / "instances").iterdir()) == sorted(others)
        active_pods.communicate(b"\n")


def test_a_manifest_that_is_not_there_names_those_that_are(settings):
    with pytest.raises(LabError, match="cannot be read") as refused:
        manifest.objects(settings.asked(Options(merbridge_manifest="nowhere.yaml")))
    assert "release, main" in refused.value.hint


def test_upstreams_own_are_known_by_commit_and_digest():
    for known in versions()["merbridge-manifests"].values():
        assert len(known["sha256"]) == 64
        assert "/merbridge/merbridge/" in known["url"]
        assert not known["url"].startswith("http://")


# -- the crash, mended


def test_the_old_host_path_is_mended_as_upstream_did_and_then_the_mount_is_named(settings, tmp_path):
    found = manifest.daemonset(manifest.objects(settings.asked(Options(merbridge_manifest=old(tmp_path)))))
    assert manifest.mend(found, "/sys/fs/cgroup/unified") == "hostPath /sys/fs/cgroup instead of /sys/fs"
    (mount,) = [one for one in manifest.main(found)["volumeMounts"] if one["name"] == "cgroup"]
    assert mount["mountPath"] == "/sys/fs/cgroup"
    assert manifest.mend(found, "/sys/fs/cgroup/unified") == "CGROUP2_PATH=/sys/fs/cgroup/unified"
    assert manifest.main(found)["env"] == [{"name": "CGROUP2_PATH", "value": "/sys/fs/cgroup/unified"}]
    assert manifest.mend(found, "/sys/fs/cgroup/unified") == "", "there is nothing more to mend"


def test_a_host_path_that_is_missing_is_added(daemonset):
    spec = daemonset["spec"]["template"]["spec"]
    spec["volumes"] = [one for one in spec["volumes"] if one["name"] != "cgroup"]
    container = manifest.main(daemonset)
    container["volumeMounts"] = [one for one in container["volumeMounts"] if one["name"] != "cgroup"]
    assert manifest.mend(daemonset, "/sys/fs/cgroup") == "hostPath /sys/fs/cgroup, which was missing"
    assert {"name": "cgroup", "mountPath": "/sys/fs/cgroup"} in container["volumeMounts"]
    assert manifest.mend(daemonset, "/sys/fs/cgroup") == "CGROUP2_PATH=/sys/fs/cgroup"


def test_where_an_app_listens():
    head = "  sl  local_address rem_address   st tx_queue rx_queue"
    row = "   0: 00000000:1388 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41234 1"
    assert limitations.listens(f"{head}\n{row}\n")
    assert not limitations.listens(f"{head}\n{row.replace('0A', '01')}\n")
    assert not limitations.listens(f"{head}\n{row.replace('1388', '1389')}\n")


# -- edited by hand


def live(daemonset, **notes):
    """Return it as the API does: with merlab's notes, and with what others add."""
    told = installation.with_notes(daemonset, {installation.FROM: "", **notes})
    told["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    told["spec"]["template"]["spec"]["containers"][0]["terminationMessagePath"] = "/dev/termination-log"
    return told


def test_what_the_api_adds_is_no_edit_nor_is_the_debug_flag(daemonset):
    found = live(daemonset)
    assert installation.is_ours(found)
    assert installation.edits(found) == []
    manifest.set_debug(found, on=True)
    assert installation.debug(found)
    assert installation.edits(found) == []


def test_an_edit_is_named_with_its_place(daemonset):
    found = live(daemonset)
    container = manifest.main(found)
    container["args"] = [*container["args"][:1], "-m", "kuma"]
    container["securityContext"]["privileged"] = False
    del found["spec"]["template"]["spec"]["hostNetwork"]
    said = " | ".join(installation.edits(found))
    assert "spec.template.spec.containers[0].args is [/app/mbctl, -m, kuma], not [/app/mbctl, -m, istio" in said
    assert "securityContext.privileged is False, not True" in said
    assert "hostNetwork is absent, not True" in said
    assert "\n" not in said


def test_one_without_merlabs_notes_is_not_merlabs(daemonset):
    assert not installation.is_ours(daemonset)


# -- preflight


def test_what_it_needs_is_said_with_the_way_on():
    assert preflight.privileges(0).verdict == "pass"
    lacking = [
        preflight.privileges(1000),
        preflight.architecture("aarch64"),
        preflight.version("5.4.0-9"),
        preflight.cgroup2("nodev\tcgroup\n"),
    ]
    for one in lacking:
        assert one.verdict == "fail"
        assert "--dataplane none" in f"{one.needed} {one.hint}"
    assert preflight.version("6.18.1").verdict == "pass"
    assert preflight.cgroup2("nodev\tcgroup\nnodev\tcgroup2\n").verdict == "pass"


def test_native_sidecars_are_no_obstacle_and_cost_what_is_said():
    assert preflight.kind_of_sidecars("classic").verdict == "pass"
    native = preflight.kind_of_sidecars("native")
    assert native.verdict == "warn"
    assert "local_pod_ips stays empty" in native.found


def test_another_merbridge_is_named():
    (one,) = preflight.alone(lambda: ["mesh/merbridge"])
    assert one.verdict == "fail"
    assert "kubectl -n mesh delete daemonset merbridge" in one.hint

    def silent():
        raise LabError("the API does not answer")

    assert preflight.alone(silent) == []


# -- captured from the real thing


CAPTURED = Path(__file__).parents[1] / "captured" / "merbridge"


def captured_trace(name):
    """Return the events of a captured trace, whose head is the kernel's."""
    raw = [each for each in (CAPTURED / name).read_text().splitlines() if not each.startswith("#")]
    events = [trace.parse(each) for each in raw]
    assert all(events), "every line is upstream's"
    return events


def captured_map(name):
    told = json.loads((CAPTURED / f"map-{name}.json").read_text())
    return {unhexed(one["key"]): unhexed(one["value"]) for one in told}


def unhexed(text):
    return bytes(int(each, 16) for each in text)


def test_a_real_request_that_opens_a_connection_between_sidecars():
    events = captured_trace("trace-first-request.txt")
    kinds = [event.kind for event in events]
    assert kinds[:3] == ["no_pod_ip", "connect", "redirect"]
    assert {"sidecar_connect", "detected"} <= set(kinds)
    assert (events[1].comm, events[1].ip, events[1].port) == ("curl", "10.96.147.164", 5000)
    assert kinds.count("redirect") == 7
    dialled = next(event for event in events if event.kind == "sidecar_connect")
    assert (dialled.comm, dialled.ip, dialled.port) == ("wrk:worker_1", "10.244.0.8", 15006)


def test_real_requests_over_kept_connections_move_four_messages():
    kinds = [event.kind for event in captured_trace("trace-5-requests.txt")]
    assert kinds.count("connect") == 5
    assert "failure" not in kinds
    assert "other" not in kinds


def test_a_real_sidecar_that_dialled_before_it_listened():
    events = captured_trace("trace-helloworld-restart.txt")
    cached = [event for event in events if event.kind == "not_in_mesh"]
    assert {event.comm for event in cached} == {"pilot-agent"}
    assert len(cached) == 2
    known = captured_map("cgroup_info_map")
    assert min(kernel_objects.read_in_mesh(value) for value in known.values()) is False
    assert any(kernel_objects.read_in_mesh(value) for value in known.values())


def test_a_real_log_is_ready_and_no_crash():
    said = (CAPTURED / "log-ready.txt").read_text()
    assert log.ready(said)
    assert log.crash(said) is None


def test_real_connections_are_found_by_the_key_that_is_made_of_curls_account():
    found = captured_map("pair_original_dst")
    value = found[kernel_objects.pairs("127.0.0.1:54592", "127.128.0.6:15001", 36)[0]]
    assert kernel_objects.read_wanted(value) == "10.96.147.164:5000"
    assert {kernel_objects.read_wanted(each) for each in found.values()} >= {"10.96.147.164:5000"}


def test_real_pods():
    assert sorted(kernel_objects.read_pod(key) for key in captured_map("local_pod_ips")) == [
        "10.244.0.5",
        "10.244.0.8",
        "10.244.0.9",
    ]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("no-cgroup-mount-0.8.1", "it finds no cgroup2"),
        ("two-cgroup2-2022", "it finds two cgroup2 mounts and takes them for one"),
        ("wrong-cgroup2-path-0.8.1", "it cannot attach to its cgroup"),
        ("pins-left-2022", "it finds the pins of one that was killed"),
    ],
)
def test_real_crashes_over_the_cgroup(name, what):
    crash = log.crash((CAPTURED / f"crash-{name}.log").read_text())
    assert (crash.what, crash.cgroup) == (what, True)


def test_a_real_end_is_no_crash():
    assert log.crash((CAPTURED / "log-end.txt").read_text()) is None
