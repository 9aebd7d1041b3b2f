"""As many connections at once as the dataplane has room for, in network namespaces of this machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dataplane_rig import Agent, NodeView, Rig, until
from test_dataplane_traffic import empty, grown

from merbridge_lab.dataplane.pins import MAPS, Pins
from merbridge_lab.istio_facts import SIDECAR_UID

pytestmark = [pytest.mark.kernel, pytest.mark.soak]

MASS = Path(__file__).with_name("dataplane_mass.py")
PORTS = ("5000", "5001")
#: From each pod to the other: 65,536 in all, more than 30,000 from one.
FROM = {"sleep": 35_536, "hello": 30_000}
#: How many processes play each part in a pod, as a process may open 20,000 files: a sidecar has two for a connection.
PARTS = {"sidecar": 12, "server": 4, "clients": 4}


def spawn(agent: Agent, *argv: str) -> None:
    agent.control.settimeout(500)
    assert agent.ask(op="spawn", argv=[MASS.read_text(), *argv])[0] == "ready"


def say(agent: Agent, line: str, process: int = 0) -> str:
    return agent.ask(op="say", process=process, line=line)[0]


def clients(place: NodeView, line: str) -> list[str]:
    """Say something to each process of clients, one after the other."""
    return [say(place.app, line, PARTS["server"] + each) for each in range(PARTS["clients"])]


def prepare(place: NodeView) -> None:
    """Give a pod room for so many, and replace its sidecar by one without threads."""
    for setting in ("net.ipv4.ip_local_port_range=1024 65535", "net.core.somaxconn=65535",
                    "net.ipv4.tcp_max_syn_backlog=65535"):  # fmt: skip
        place.app.sh("sysctl", "-qw", setting)
    place.sidecar.end()
    place.sidecar = Agent(place.cgroup / "sidecar", str(place.app.netns), SIDECAR_UID)
    place.stack.callback(place.sidecar.end)
    for _ in range(PARTS["sidecar"]):
        spawn(place.sidecar, "sidecar", "15001", "15006")
    for _ in range(PARTS["server"]):
        spawn(place.app, "server", *PORTS)
    for _ in range(PARTS["clients"]):
        spawn(place.app, "clients")


@pytest.fixture
def rig():
    rig = Rig()
    try:
        rig.attach()
        for place in (rig.sleep, rig.hello):
            prepare(place)
        print(memory(rig))  # noqa: T201
        yield rig
    finally:
        rig.close()


def test_65536_connections_at_once_and_more_than_30000_of_one_pod(rig):
    """On all three legs, with the rules flushed: none is refused, reset, or left to anybody else."""
    pods = {"sleep": (rig.sleep, rig.hello.ip), "hello": (rig.hello, rig.sleep.ip)}
    with ThreadPoolExecutor() as pool:
        opening = {
            name: pool.submit(clients, place, f"open {FROM[name] // PARTS['clients']} {ip} {' '.join(PORTS)}")
            for name, (place, ip) in pods.items()
        }
        for name, job in opening.items():
            assert job.result() == ["done"] * PARTS["clients"], name
    until(lambda: len(rig.plane.pairs()) == 3 * sum(FROM.values()), "all legs of all of them are there", 60)
    before = rig.plane.counters()
    for turn in range(2):
        for name, (place, _) in pods.items():
            count = FROM[name] // PARTS["clients"]
            assert clients(place, "talk") == [f"{count} talked, 0 wrong"] * PARTS["clients"], turn
    after = rig.plane.counters()
    print(memory(rig))  # noqa: T201
    for name, (place, _) in pods.items():
        assert [say(place.sidecar, "failed", each) for each in range(PARTS["sidecar"])] == ["0"] * PARTS["sidecar"]
        moved = grown(before[name], after[name])
        print(name, moved)  # noqa: T201
        assert moved["outbound_redirected_messages"] >= 2 * 2 * FROM[name] * 0.99
        assert after[name]["map_full"] == after[name]["left_to_rules"] == 0
    for name, (place, _) in pods.items():
        assert clients(place, "close") == ["closed"] * PARTS["clients"], name
    until(lambda: empty(rig), "no entry is left", 120)


def memory(rig: Rig) -> dict[str, int]:
    """Return what the kernel charges for each map, in kB."""
    found = {}
    for name in MAPS:
        with Pins(rig.pins).open_map(name) as fd:
            lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
            found[name] = next(int(line.split()[1]) for line in lines if line.startswith("memlock")) // 1024
    return found
