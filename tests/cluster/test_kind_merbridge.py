"""The kind lab with fake Merbridges: at their interfaces they behave as it does, but intercept nothing.

They test what merlab does around it: installation, the crash of the walkthrough, the debug flag, the trace, what it
leaves. Whatever they print, trace and keep in their map, merlab must detect that they intercept nothing, and report it.
Upstream's own image was run outside of the tests: docs/merbridge.md.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from kind_host import NODE, Running, docker, held, in_node, kubectl, leftovers, merlab, refusal, rules, settled
from tests.cluster import builds
from tests.merlab_cli import told

from merbridge_lab.labs.kubernetes import manifests
from merbridge_lab.labs.kubernetes.dataplanes import daemonsets
from merbridge_lab.labs.kubernetes.settings import Settings
from merbridge_lab.merbridge import kernel_objects

pytestmark = pytest.mark.cluster

LOOKALIKE = f"merbridge={builds.ref('lookalike')}"
DAEMONSET = ("-n", "istio-system", "daemonset", "merbridge")
CONTAINER = "/spec/template/spec/containers/0"
HOST_NETWORK = "/spec/template/spec/hostNetwork"
#: What the walkthrough, and verify, must report about something that intercepts nothing.
NOTHING = "eBPF intercepted none of"
FLUSHED = "with the rules flushed, nothing sent it there"
RULES = "the rules did the work, not eBPF"
#: Upstream's maps, by the part of their names that the kernel keeps.
MAPS = {
    name[:15]
    for name in (
        kernel_objects.PODS,
        kernel_objects.SOCKETS,
        kernel_objects.WANTED,
        kernel_objects.CONTAINERS,
        "cookie_original_dst",
    )
}


def up(*words: str) -> Any:
    return merlab("up", "--dataplane", "merbridge", "--json", *words)


def step(number: str) -> tuple[int, dict[str, Any]]:
    done = merlab("step", number, "--json")
    return done.returncode, told(done)


def check(report: dict[str, Any], number: int, name: str) -> dict[str, Any]:
    outcome = next(one for one in report["steps"] if one["number"] == number)
    return next(one for one in outcome["checks"] if one["name"] == name)


def daemonset() -> dict[str, Any]:
    return dict(json.loads(kubectl("get", *DAEMONSET, "-o", "json")))


def args() -> list[str]:
    return list(daemonset()["spec"]["template"]["spec"]["containers"][0]["args"])


def evidence(found: dict[str, Any]) -> dict[str, Any]:
    return {one["source"]: one["after"] for one in found["evidence"]}


# -- by hand, past merlab ---------------------------------------------------------------------------------------------


def edit(op: str, path: str, value: object = None) -> None:
    change = [{"op": op, "path": path, **({} if value is None else {"value": value})}]
    kubectl("patch", *DAEMONSET, "--type", "json", "-p", json.dumps(change))


def rolled_out() -> None:
    kubectl("rollout", "status", *DAEMONSET[:2], "daemonset/merbridge", "--timeout=60s")


def has_host_network() -> bool:
    return bool(daemonset()["spec"]["template"]["spec"].get("hostNetwork"))


def without_the_flag() -> None:
    """Remove -d, as somebody does who has read enough, and check that the previous pod is gone."""
    edit("remove", f"{CONTAINER}/args/{args().index('-d')}")
    rolled_out()
    assert "-d" not in args()


def pod() -> str:
    """Return the uid of the only pod; fail if there are two, or none."""
    (uid,) = kubectl(
        "-n", "istio-system", "get", "pods", "-l", "app=merbridge", "-o", "jsonpath={.items[*].metadata.uid}"
    ).split()
    return uid


def bpftool(*words: str) -> Any:
    done = subprocess.run(("bpftool", "--json", *words), check=True, capture_output=True, text=True, timeout=30)
    return json.loads(done.stdout.strip() or "[]")  # of none, it prints an empty line


def attached() -> list[str]:
    """Return the programs on the cgroup of the node's container, found from this machine."""
    process = Path("/proc") / docker("inspect", "--format", "{{.State.Pid}}", NODE).strip()
    cgroup = next(line for line in (process / "cgroup").read_text().splitlines() if line.startswith("0::"))
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    top = next(mount for _, mount, kind, *_ in mounts if kind == "cgroup2")
    # Its first process is in a child of it.
    node = cgroup.removeprefix("0::").removesuffix("/init.scope")
    return sorted(one["name"] for one in bpftool("cgroup", "show", top + node))


def maps() -> dict[int, str]:
    """Return upstream's maps in this machine's kernel, by id."""
    return {one["id"]: one["name"] for one in bpftool("map", "show") if one.get("name") in MAPS}


# -- what each of the stand-ins must come to --------------------------------------------------------------------------


def flushed_it_fails() -> None:
    """Check that step 9 fails for the right cause, and restore the rules."""
    before = rules()
    status, report = step("9")
    assert status == 1
    assert FLUSHED in report["cause"]
    assert NOTHING in check(report, 9, "redirect.ebpf_took_over")["reason"]
    assert check(report, 9, "rules.restored")["verdict"] == "pass"
    assert rules() == before


def it_stands_and_proves_nothing() -> dict[str, Any]:
    """Check that verify fails although everything that the proof needs is in order."""
    done = merlab("verify", "--json")
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    report = told(done)
    assert [one["verdict"] for one in report["standing"]] == ["pass"] * len(report["standing"])
    assert RULES in report["cause"]
    return report


def it_does_not_stand() -> str:
    """Check that verify fails before the proof; return the cause."""
    done = merlab("verify", "--json")
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    report = told(done)
    assert report["steps"] == []
    assert report["standing"][-1]["name"] == "dataplane.in_order"
    return str(report["cause"])


def test_without_reach_to_the_image_it_ends_at_once_and_names_the_ways_on(machine: dict[str, object]) -> None:
    began = time.monotonic()
    done = up("--image", "merbridge=merlab.test/nobody/has:this")
    said = refusal(done)
    assert time.monotonic() - began < 60
    assert "merlab.test/nobody/has:this, is not on this machine and cannot be pulled from merlab.test" in said
    for way in ("docker load", "--image merbridge=REF", "--dataplane none", "--lab embedded"):
        assert way in said
    assert leftovers() == machine, "nothing was made"


@pytest.fixture(scope="module")
def lab(machine: dict[str, object]) -> dict[str, Any]:  # noqa: ARG001 - comes first
    """A lab with the fake that starts well: the report of `up`."""
    done = up("--image", LOOKALIKE)
    assert done.returncode == 1, done.stdout[-4000:] + done.stderr[-4000:]
    return told(done)


def test_up_stops_where_nothing_is_intercepted_although_all_looks_right(lab: dict[str, Any]) -> None:
    assert [one["outcome"] for one in lab["steps"]] == ["pass", "pass", "pass", "fail"]
    in_order = check(lab, 3, "dataplane.in_order")
    assert in_order["verdict"] == "pass", "it is installed, says that it is ready, is attached, and fills its map"
    seen = evidence(in_order)
    assert {"bpf:node/connect4", "bpf:node/sock_ops", "bpf:node/getsockopt"} <= set(seen)
    assert len(seen["bpf:local_pod_ips"].split(", ")) == 3
    assert NOTHING in lab["cause"]
    assert "its program ran" in lab["cause"]


def test_step_4_adds_the_flag_once_and_lines_come(lab: dict[str, Any]) -> None:  # noqa: ARG001
    assert "-d" not in args()
    status, report = step("4")
    assert status == 0, report["cause"]
    assert args()[:2] == ["/app/mbctl", "-d"]
    shown = report["steps"][0]["commands"]
    assert any("patch daemonset merbridge" in one for one in shown)
    before = daemonset()["metadata"]["generation"]
    status, report = step("4")
    assert (status, report["steps"][0]["acted"]) == (0, False)
    assert args().count("-d") == 1
    assert daemonset()["metadata"]["generation"] == before


def test_step_5_tells_a_trace_that_looks_right_from_one_of_this_request(lab: dict[str, Any]) -> None:  # noqa: ARG001
    step("4")
    status, report = step("5")
    assert status == 1
    found = check(report, 5, "trace.tells_the_request")
    kinds = {one["unit"] for one in found["evidence"]}
    assert {"redirect"} <= kinds, "its lines were read and decoded"
    assert "whatever the trace shows, this request was not intercepted" in report["cause"]


def test_step_9_says_that_nothing_sent_the_request_to_its_sidecar_and_restores(lab: dict[str, Any]) -> None:  # noqa: ARG001
    flushed_it_fails()


def test_verify_is_no_proof_and_its_twin_is_out_of_reach_and_gone_afterwards(lab: dict[str, Any]) -> None:  # noqa: ARG001
    report = it_stands_and_proves_nothing()
    control = check(report, 8, "rules.stood_still")["control"]
    assert control["verdict"] == "pass"
    assert any("sleep-twin" in one["source"] for one in control["evidence"])
    assert "twin" not in kubectl("get", "pods,services", "-o", "name")


# -- faults -----------------------------------------------------------------------------------------------------------


def test_an_edit_by_hand_is_named_and_undone(lab: dict[str, Any]) -> None:  # noqa: ARG001
    edit("replace", HOST_NETWORK, value=False)
    said = told(merlab("status", "--json"))["problems"]
    assert any("is not as merlab applied it" in one and "hostNetwork" in one for one in said), said
    _, report = step("3")
    assert check(report, 3, "dataplane.in_order")["verdict"] == "pass"
    assert has_host_network()


@pytest.mark.soak
def test_an_edit_by_hand_while_step_3_waits_is_undone_or_named_and_not_waited_for(lab: dict[str, Any]) -> None:  # noqa: ARG001
    edit("replace", HOST_NETWORK, value=False)
    running = Running("step", "3", "--json")
    try:
        assert running.reaches(lambda _: has_host_network() and not daemonsets.rolled_out(daemonset()))
        edit("replace", HOST_NETWORK, value=False)
        try:
            running.process.communicate(timeout=90)  # half of its wait for a pod that is about to be ready
        finally:
            done = running.end(signal.SIGINT)
        if not has_host_network():
            said = refusal(done)
            assert "is not as merlab applied it" in said
            assert "hostNetwork" in said
    finally:
        edit("add", HOST_NETWORK, value=True)
        rolled_out()


@pytest.mark.soak
def test_a_flag_that_was_added_by_hand_is_no_edit_and_stays(lab: dict[str, Any]) -> None:  # noqa: ARG001
    without_the_flag()
    edit("add", f"{CONTAINER}/args/1", "-d")
    rolled_out()
    assert told(merlab("status", "--json"))["problems"] == []
    before = daemonset()["metadata"]["generation"]
    status, report = step("4")
    assert status == 0, report["cause"]
    assert report["steps"][0]["acted"] is False
    assert args().count("-d") == 1
    assert daemonset()["metadata"]["generation"] == before


def test_a_node_without_a_bpffs_is_no_obstacle(lab: dict[str, Any]) -> None:  # noqa: ARG001
    before = pod()
    in_node("umount", "/sys/fs/bpf", check=False)  # kind's own nodes have none
    try:
        assert "/sys/fs/bpf" not in in_node("cat", "/proc/mounts")
        kubectl("-n", "istio-system", "delete", "pod", "-l", "app=merbridge", "--wait")
        rolled_out()
        assert pod() != before
        assert told(merlab("status", "--json"))["problems"] == []
    finally:
        in_node("mount", "-t", "bpf", "bpf", "/sys/fs/bpf")


def test_one_that_was_killed_leaves_its_programs_and_the_next_starts_all_the_same(lab: dict[str, Any]) -> None:  # noqa: ARG001
    kubectl("delete", *DAEMONSET, "--cascade=orphan")
    kubectl("-n", "istio-system", "delete", "pod", "-l", "app=merbridge", "--force", "--grace-period=0")
    _, report = step("3")
    assert check(report, 3, "dataplane.in_order")["verdict"] == "pass", report["cause"]


def test_another_ones_merbridge_stays_untouched(lab: dict[str, Any]) -> None:  # noqa: ARG001
    foreign = manifests.text("merbridge", Settings.default()).split("---\n")[-1].replace("istio-system", "default")
    kubectl(
        "apply", "-f", "-", stdin=foreign.replace("serviceAccountName: merbridge\n", "serviceAccountName: default\n")
    )
    try:
        said = refusal(up("--until", "3", "--image", LOOKALIKE))
        assert "default/merbridge" in said
        assert "kubectl" in said
    finally:
        kubectl("delete", "daemonset", "merbridge", "-n", "default", "--force", "--grace-period=0")


@pytest.mark.soak
def test_the_crash_over_the_cgroup_is_known_mended_and_told(lab: dict[str, Any], tmp_path: Path) -> None:  # noqa: ARG001
    text = manifests.text("merbridge", Settings.default())
    old = tmp_path / "old.yaml"
    old.write_text(text.replace("/sys/fs/cgroup", "/sys/fs").replace("IfNotPresent", "Always"))
    report = told(up("--until", "3", "--image", LOOKALIKE, "--merbridge-manifest", str(old)))
    in_order = check(report, 3, "dataplane.in_order")
    assert in_order["verdict"] == "pass", report["cause"]
    mended = evidence(in_order)["kubernetes:merbridge/mended"]
    assert "hostPath /sys/fs/cgroup instead of /sys/fs" in mended
    assert any("hostPath /sys/fs/cgroup" in one for one in report["steps"][3]["commands"])
    assert NOTHING in report["cause"]
    flushed_it_fails()
    it_stands_and_proves_nothing()


@pytest.mark.soak
def test_one_that_crashes_once_and_takes_its_time_is_waited_for(lab: dict[str, Any]) -> None:  # noqa: ARG001
    late = builds.ref("lookalike-late")
    done = up("--until", "3", "--image", f"merbridge={late}", "--merbridge-manifest", "merlab")
    report = told(done)
    assert report["error"] is None, done.stdout[-3000:] + done.stderr[-3000:]
    in_order = check(report, 3, "dataplane.in_order")
    assert in_order["verdict"] == "pass", report["cause"]
    assert evidence(in_order)["kubernetes:merbridge/image"] == late
    flushed_it_fails()
    it_stands_and_proves_nothing()


@pytest.mark.soak
def test_another_crash_shows_upstreams_own_words_and_the_nearest_issue(lab: dict[str, Any]) -> None:  # noqa: ARG001
    done = up("--until", "3", "--image", f"merbridge={builds.ref('lookalike-broken')}")
    said = refusal(done)
    assert "Merbridge crashes: its programs do not compile here" in said
    assert "issues/356" in said
    assert "fatal error: 'linux/bpf.h' file not found" in told(done)["error"]["stderr"]
    flushed_it_fails()
    assert "the pod of Merbridge is not ready" in it_does_not_stand()


@pytest.mark.soak
def test_after_a_crash_up_with_an_image_that_starts_brings_it_in_order(lab: dict[str, Any]) -> None:  # noqa: ARG001
    report = told(up("--until", "3", "--image", LOOKALIKE))
    assert report["error"] is None, report["error"]
    in_order = check(report, 3, "dataplane.in_order")
    assert in_order["verdict"] == "pass", report["cause"]
    assert f"merbridge={evidence(in_order)['kubernetes:merbridge/image']}" == LOOKALIKE
    assert NOTHING in report["cause"]


@pytest.mark.soak
def test_down_in_the_middle_of_a_rollout_leaves_nothing_on_the_node(lab: dict[str, Any]) -> None:  # noqa: ARG001
    assert "-d" not in args()
    assert attached() == ["mb_get_sockopt", "mb_sock_connect", "mb_sockops"]
    assert "local_pod_ips" in maps().values()
    running = Running("step", "4")
    assert running.reaches(lambda _: "-d" in args())
    running.end(signal.SIGKILL)
    assert not daemonsets.rolled_out(daemonset()), "it was killed in the middle"
    assert held(merlab("down", "--keep-cluster"))
    assert attached() == []
    assert settled(maps, {}) == {}
    assert "merbridge" not in kubectl("get", "daemonsets,clusterroles,clusterrolebindings", "-A", "-o", "name")
    listed = in_node("sh", "-c", "ls /sys/fs/bpf; ls /opt/cni/bin /etc/cni/net.d | grep -i merbridge", check=False)
    assert set(listed.split()) <= {"maps.debug", "progs.debug"}, "every bpffs has these two"
    assert NODE in docker("ps", "--format", "{{.Names}}")
