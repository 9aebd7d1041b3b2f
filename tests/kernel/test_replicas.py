"""A lab of more pods than the walkthrough has: made, served, repaired after a kill, changed in number, removed."""

from __future__ import annotations

import json

import pytest
from walkthrough_host import NAME, Lab, differences, kill, left_as_found, merlab

from merbridge_lab.adapters.command import run
from merbridge_lab.labs.embedded.managed_lab import ManagedEmbeddedLab

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def host():
    """The host as it is without a lab, which it must be again."""
    with left_as_found() as before:
        yield before


@pytest.fixture
def five(host):  # noqa: ARG001 - looked at afterwards
    """A lab of five pods."""
    done = merlab("up", "-q", "--pods", "5")
    assert done.returncode == 0, done.stdout + done.stderr


def status():
    """Return what `merlab status` says."""
    return json.loads(merlab("status", "--json").stdout)


def served_requests(number: int) -> int:
    """Send a request from a replica, and return how many connections eBPF intercepted there meanwhile."""
    lab = ManagedEmbeddedLab(name=NAME)
    pod = lab._mesh.pod(f"sleep-{number}")
    before = lab.dataplane.counters()[pod.spec.name]["outbound_connects"]
    said = run(pod.argv_as_app(["curl", "-sS", "-m", "5", "http://helloworld:5000/hello"])).stdout
    assert said.startswith("Hello version")
    return lab.dataplane.counters()[pod.spec.name]["outbound_connects"] - before


@pytest.mark.usefixtures("five")
def test_each_replica_is_served_and_verify_holds():
    told = status()
    assert told["replicas"] == ["sleep-4", "sleep-5"]
    assert told["problems"] == []
    assert [served_requests(number) for number in (4, 5)] == [1, 1]
    done = merlab("verify", "--json")
    assert json.loads(done.stdout)["cause"] is None, done.stdout
    assert done.returncode == 0


@pytest.mark.usefixtures("five")
def test_a_healthy_up_without_a_number_keeps_them_and_changes_nothing():
    lab = ManagedEmbeddedLab(name=NAME)
    before = [(pod.app_pid, pod.sidecar_pid) for pod in lab.replicas()], lab.dataplane.fingerprint()
    done = merlab("up")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pods: 5, as the lab was made with" in done.stdout + done.stderr
    assert before == ([(pod.app_pid, pod.sidecar_pid) for pod in lab.replicas()], lab.dataplane.fingerprint())


@pytest.mark.usefixtures("five")
def test_what_is_broken_in_a_replica_is_said_and_repaired():
    lab = Lab()
    lab.in_pod("sleep-5", "ip", "link", "delete", "eth0")
    lab.in_pod("sleep-4", "nft", "flush", "ruleset")
    told = " ".join(status()["problems"])
    assert "sleep-5" in told
    assert "sleep-4" in told
    assert merlab("up", "-q").returncode == 0
    assert status()["problems"] == []
    assert served_requests(5) == 1


@pytest.mark.usefixtures("host")
def test_killed_half_way_another_up_without_a_number_makes_the_rest():
    merlab("down")
    kill("up", "--pods", "7", at=(Lab().run / "netns" / "sleep-5").exists)
    assert not (Lab().run / "netns" / "sleep-7").exists()
    assert merlab("up", "-q").returncode == 0
    assert status()["replicas"] == ["sleep-4", "sleep-5", "sleep-6", "sleep-7"]
    assert served_requests(7) == 1


def test_killed_half_way_down_leaves_nothing(host):
    merlab("down")
    kill("up", "--pods", "6", at=(Lab().run / "netns" / "sleep-5").exists)
    assert merlab("down").returncode == 0
    assert differences(host) == {}


@pytest.mark.usefixtures("five")
def test_fewer_pods_leave_nothing_of_the_others():
    cookie = Lab().cookie("sleep-5")
    done = merlab("up", "-q", "--pods", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    told = status()
    assert (told["replicas"], told["problems"]) == (["sleep-4"], [])
    lab = Lab()
    assert not list(lab.run.rglob("sleep-5*"))
    assert not lab.pins.links_of(str(cookie)).exists()
    assert "veth2-5" not in lab.in_pod("node", "ip", "-o", "link")


@pytest.mark.soak
def test_a_hundred_pods(host):
    merlab("down")
    done = merlab("up", "-q", "--pods", "100")
    assert done.returncode == 0, done.stdout + done.stderr
    told = status()
    assert (len(told["replicas"]), told["problems"]) == (97, [])
    assert [served_requests(number) for number in (4, 52, 100)] == [1, 1, 1]
    assert merlab("verify", "-q").returncode == 0
    assert merlab("down").returncode == 0
    assert differences(host) == {}
