"""As many connections at once as the dataplane has room for, in network namespaces of this machine."""

from __future__ import annotations

import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dataplane_rig import Agent, NodeView, Rig, until
from test_dataplane_traffic import empty, grown

from merbridge_lab.istio_facts import SIDECAR_UID

pytestmark = [pytest.mark.kernel, pytest.mark.soak]

MASS = Path(__file__).with_name("dataplane_mass.py")
PORTS = ("5000", "5001")
DESCRIPTORS = 400_000
#: From each pod to the other: 65,536 in all, more than 30,000 from one.
FROM = {"sleep": 35_536, "hello": 30_000}


def process_of(agent: Agent, *argv: str) -> None:
    agent.control.settimeout(400)
    resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    assert agent.ask(op="spawn", argv=[str(MASS), *argv])[0] == "ready"


def say(agent: Agent, line: str, process: int = 0) -> str:
    return agent.ask(op="say", process=process, line=line)[0]


def prepare(place: NodeView) -> None:
    """Give a pod room for so many, and replace its sidecar by one without threads."""
    for setting in ("net.ipv4.ip_local_port_range=1024 65535", "net.core.somaxconn=65535",
                    "net.ipv4.tcp_max_syn_backlog=65535"):  # fmt: skip
        place.app.sh("sysctl", "-qw", setting)
    place.sidecar.end()
    place.sidecar = Agent(place.cgroup / "sidecar", str(place.app.netns), SIDECAR_UID)
    place.stack.callback(place.sidecar.end)
    process_of(place.sidecar, "sidecar", "15001", "15006")
    process_of(place.app, "server", *PORTS)
    process_of(place.app, "clients")


@pytest.fixture
def rig():
    rig = Rig()
    try:
        rig.attach()
        for place in (rig.sleep, rig.hello):
            prepare(place)
        yield rig
    finally:
        rig.close()


def test_65536_connections_at_once_and_more_than_30000_of_one_pod(rig):
    """On all three legs, with the rules flushed: none is refused, reset, or left to anybody else."""
    pods = {"sleep": (rig.sleep, rig.hello.ip), "hello": (rig.hello, rig.sleep.ip)}
    with ThreadPoolExecutor() as pool:
        opening = {
            name: pool.submit(say, place.app, f"open {FROM[name]} {ip} {' '.join(PORTS)}", 1)
            for name, (place, ip) in pods.items()
        }
        assert {name: job.result() for name, job in opening.items()} == dict.fromkeys(FROM, "done")
    until(lambda: len(rig.plane.pairs()) == 3 * sum(FROM.values()), "all legs of all of them are there", 120)
    before = rig.plane.counters()
    for turn in range(2):
        for name, (place, _) in pods.items():
            assert say(place.app, "talk", 1) == f"{FROM[name]} talked, 0 wrong", turn
    after = rig.plane.counters()
    for name, (place, _) in pods.items():
        assert say(place.sidecar, "failed") == "0"
        moved = grown(before[name], after[name])
        assert moved["outbound_redirected_messages"] >= 2 * 2 * FROM[name] * 0.99, moved
        for unwanted in ("map_full", "left_to_rules"):
            assert after[name][unwanted] == 0
    for name, (place, _) in pods.items():
        assert say(place.app, "close", 1) == "closed", name
    until(lambda: empty(rig), "no entry is left", 120)
