"""`merlab bench` on an embedded lab: it measures both ways, and leaves the lab as it was, also when killed."""

from __future__ import annotations

import json
import signal

import pytest
from tests import merlab_cli
from tests.merlab_cli import MERLAB
from walkthrough_host import Lab, environment, merlab

from merbridge_lab.adapters import cgroup
from merbridge_lab.labs.embedded import topology
from merbridge_lab.polling import poll_until
from schema_files import read

pytestmark = pytest.mark.kernel

NAME = "merlab-bench"
ENVIRONMENT = environment(NAME)
QUICK = ("bench", "--quick", "--rows", "latency", "--rounds", "1", "--json")


@pytest.fixture(scope="module")
def lab():
    """A lab of its own, with eBPF attached."""
    done = merlab("up", "--lab", "embedded", "--until", "3", "-q", env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    yield Lab(NAME)
    assert merlab("down", env=ENVIRONMENT).returncode == 0


def served(lab):
    """Return the bench pods that eBPF serves, by name."""
    return {pod["name"] for pod in lab.pins.pods().values()} & topology.BENCH_NAMES


def left_of(lab):
    """Return what exists of bench pods: cgroups, namespaces, folders, pods that eBPF serves."""
    places = (lab.machine.cgroup / "twins", lab.run / "netns", lab.run / "mnt", lab.run / "pods")
    return [str(path) for place in places for path in place.glob("bench-*")] + sorted(served(lab))


def test_both_ways_are_measured_and_the_lab_stays(lab):
    before = lab.lasting()
    done = merlab(*QUICK, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    told = read("bench", done.stdout)
    latency, noise = told["rows"]
    assert [(row["name"], row["invalid"], len(row["pairs"])) for row in (latency, noise)] == [
        ("latency", None, 1),
        ("rules-rules", None, 1),
    ]
    assert set(latency["ways"]) == {"rules", "ebpf"}
    assert all(way["cpu"] > 0 for way in latency["ways"].values())
    assert not told["interrupted"]
    assert told["seconds"] <= 30
    assert left_of(lab) == []
    assert lab.lasting() == before


def test_ctrl_c_keeps_what_was_measured(lab):
    running = merlab_cli.Started([MERLAB, "bench", "--rows", "latency", "--json"], ENVIRONMENT, 60)
    assert poll_until(lambda: served(lab) and _is_loaded(lab), timeout=60, awaiting="a generator", every=0.02)
    done = running.end(signal.SIGINT)
    assert done.returncode == 130, done.stderr
    assert read("bench", done.stdout)["interrupted"]
    assert left_of(lab) == []


def _is_loaded(lab):
    clients = (lab.machine.cgroup / "twins").glob("bench-*-client/app")
    return any(len(cgroup.processes(each)) > 1 for each in clients)


def test_killed_half_way_the_next_command_removes_what_is_left(lab):
    before = lab.lasting()
    running = merlab_cli.Started([MERLAB, *QUICK], ENVIRONMENT, 60)
    assert poll_until(lambda: served(lab), timeout=60, awaiting="eBPF to serve bench pods", every=0.02)
    assert running.end(signal.SIGKILL).returncode == -signal.SIGKILL
    assert left_of(lab) != []
    done = merlab("restore", env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert left_of(lab) == []
    assert lab.lasting() == before
    assert json.loads(merlab("status", "--json", env=ENVIRONMENT).stdout)["problems"] == []


def test_killed_while_it_attaches_a_pod_nothing_of_that_is_left(lab):
    """Such a pod has links, and no name in the pod map yet."""
    before, links = lab.lasting(), len(lab.pins.links())
    running = merlab_cli.Started([MERLAB, *QUICK], ENVIRONMENT, 60)
    begun = poll_until(
        lambda: len(lab.pins.links()) > links, timeout=60, awaiting="a link of a bench pod", every=0.0005
    )
    assert running.end(signal.SIGKILL).returncode == -signal.SIGKILL
    assert begun
    assert merlab("restore", env=ENVIRONMENT).returncode == 0
    assert lab.lasting() == before


def test_a_lab_without_ebpf_is_one_sentence(lab):  # noqa: ARG001 - another one
    other = environment("merlab-bench2")
    assert merlab("up", "--lab", "embedded", "--until", "1", "-q", env=other).returncode == 0
    try:
        done = merlab(*QUICK[:-1], env=other)
        assert done.returncode == 3
        assert "the eBPF dataplane is not attached" in done.stderr
    finally:
        assert merlab("down", env=other).returncode == 0
