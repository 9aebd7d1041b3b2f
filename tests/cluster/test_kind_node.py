"""The kind lab on the second node image, which is as near to kind's own as can be built here: README.md says how near.

`make test-cluster` proves the walkthrough once by merlab's dataplane, and looks at what kind's nodes do not have; in
`make soak-cluster` the files that test the walkthrough and the stand-ins for Merbridge run on it, too.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from agent_host import PINS, on_node, served, status, up
from kind_host import NODE, docker, held, in_node, merlab, pod_of
from tests.cluster import __main__ as test_cluster
from tests.cluster import builds
from tests.merlab_cli import told

from merbridge_lab.labs.kubernetes import topology
from merbridge_lab.labs.kubernetes.dataplanes.merlab import manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

# ruff: noqa: ARG001 - what a test needs to be there, it does not always use

pytestmark = pytest.mark.cluster

#: By the name that MERLAB_CLUSTER_NODE takes.
SYSTEMD = "systemd"
#: How long one of the files may take on two busy cores, in seconds.
_LONG = 1800.0


def built() -> str:
    """Return the second image, built if it is missing."""
    return builds.on_request(builds.versions()["nodes"][SYSTEMD])


@pytest.fixture(scope="module")
def lab(machine: dict[str, object]) -> Iterator[dict[str, Any]]:
    """The report of an `up` from nothing, all ten steps, on that node."""
    done = up("--kind-image", built())
    assert held(done)
    yield told(done)
    assert held(merlab("down"))


def test_all_ten_steps_hold_on_it(lab: dict[str, Any]) -> None:
    assert (lab["verdict"], lab["skipped"]) == ("pass", 0)
    assert {one["number"]: one["outcome"] for one in lab["steps"]} == dict.fromkeys(range(10), "pass")


def test_it_is_systemds_node_with_the_runtime_of_the_table(lab: dict[str, Any]) -> None:
    """Else what holds on it would say no more than what holds on the other image."""
    assert docker("inspect", "--format", "{{.Config.Image}}", NODE).strip() == builds.ref("node-systemd")
    assert in_node("cat", "/proc/1/comm").strip() == "systemd"
    assert in_node("systemctl", "is-active", "containerd", "kubelet").split() == ["active", "active"]
    versions = builds.versions()["tools"]
    assert f"RuntimeVersion:  {versions['containerd']['version']}" in in_node("crictl", "version")
    assert in_node("crictl", "--version").split()[-1] == versions["crictl"]["version"]
    assert in_node("systemctl", "list-units", "--failed", "--no-legend") == ""


def test_a_pods_cgroup_is_the_one_that_systemd_made(lab: dict[str, Any]) -> None:
    """By the driver that kind asks for, a slice for each pod; the other image has folders."""
    uid = pod_of("app=sleep")["metadata"]["uid"].replace("-", "_")
    found = in_node("find", "/sys/fs/cgroup", "-path", "*/kubelet.slice/*", "-name", f"*-pod{uid}.slice")
    in_cgroup2 = [path for path in found.split() if "/unified/" in path or path.startswith("/sys/fs/cgroup/kubelet")]
    assert in_cgroup2, found
    assert "cri-containerd-" in in_node("find", in_cgroup2[0], "-name", "*.scope")


def test_verify_holds_on_it(lab: dict[str, Any]) -> None:
    done = merlab("verify", "--json")
    assert held(done)
    report = told(done)
    assert [cell["verdict"] for cell in report["matrix"]] == ["pass"] * 6


def test_the_agent_serves_the_apps_of_it_and_no_others(lab: dict[str, Any]) -> None:
    found = status()
    assert (found["ready"], found["redirecting"]) == (True, True)
    apps = {pod_of(spec.selector)["metadata"]["name"] for spec in topology.WORKLOADS}
    assert apps <= served()
    assert {each["namespace"] for each in found["pods"] if each["state"] == "served"} == {topology.NAMESPACE}
    assert told(merlab("status", "--json"))["problems"] == []


def test_the_bpffs_that_it_lacks_comes_with_the_agent_and_goes_with_it(lab: dict[str, Any]) -> None:
    assert in_node("findmnt", "-n", "-o", "SOURCE,FSTYPE", "/sys/fs/bpf").split() == [manifest.NAME, "bpf"]
    assert PINS in in_node("find", "/sys/fs/bpf").splitlines()
    assert held(merlab("down", "--keep-cluster"))
    assert "/sys/fs/bpf" not in in_node("cat", "/proc/mounts")
    left = on_node()
    assert [path for path in left["files"] if "imported" not in path] == []
    assert [each for each in left["attached"] if not each[-1].startswith("sd_")] == [], "systemd has its own"


@pytest.mark.soak
@pytest.mark.parametrize(
    ("what", "marked", "least"),
    [
        ("test_kind_walkthrough.py", "cluster and not soak", 20),
        ("test_kind_merlab.py", "cluster and not soak", 10),
        ("test_kind_merbridge.py", "cluster and not soak", 10),
        ("test_kind_changes.py::test_after_a_restart_of_the_node_all_is_served_again", "cluster and soak", 1),
    ],
)
def test_the_tests_of_the_other_node_hold_on_it(
    machine: dict[str, object], monkeypatch: pytest.MonkeyPatch, what: str, marked: str, least: int
) -> None:
    """All of a file that is not long in itself; of another one the restart, after which the node has no bpffs again."""
    built()
    monkeypatch.setenv("MERLAB_CLUSTER_NODE", SYSTEMD)
    monkeypatch.setenv("MERLAB_TEST_CLUSTER", shlex.join(test_cluster.merlab_arguments()))
    argv = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, f"tests/cluster/{what}")
    done = subprocess.run(argv, cwd=builds.ROOT, check=False, capture_output=True, text=True, timeout=_LONG)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    last = done.stdout.splitlines()[-1]
    passed = re.match(r"(\d+) passed", last)
    assert passed, last
    assert int(passed[1]) >= least
    assert "skipped" not in last
