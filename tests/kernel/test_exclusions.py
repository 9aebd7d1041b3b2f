"""Istio's annotations: eBPF takes exactly the connections that the rules would redirect, for random pods.

A model evaluates the text of the rules (tests/iptables_model.py). Here it is compared with the programs, and with the
kernel's own evaluation of the same rules. tests/cluster compares the text with what Istio's own tool writes.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dataplane_rig import IPS, NODE_IP, Agent, Rig
from tests import annotated_pods
from tests.iptables_model import Nat, Packet

from merbridge_lab.adapters import bpf_maps
from merbridge_lab.dataplane import attach as attaching
from merbridge_lab.dataplane import interception_lists, istio_annotations
from merbridge_lab.dataplane.endpoints import sidecar_of
from merbridge_lab.errors import LabError
from merbridge_lab.istio_facts import INBOUND_PORT, INBOUND_SOURCE, OUTBOUND_PORT, SIDECAR_UID
from merbridge_lab.labs.embedded import rule_templates

if TYPE_CHECKING:
    import socket

pytestmark = pytest.mark.kernel

CONFIGURATIONS = 1000
RULED = 40
#: Addresses that matter more than others: pods, the loopback, the node.
OTHERS = (*IPS.values(), IPS["sleep"], IPS["hello"], IPS["hello"], "127.0.0.1", "127.0.0.2", NODE_IP)
#: No connection can be made to these.
NOWHERE = ("0.0.0.0", "255.255.255.255", "127.255.255.255")
OTHER_USER = 2000
SEED = int(os.environ.get("MERLAB_SEED", "14"))

#: Who dials: uid, gid, and the source that it binds to, if any.
WHO = {
    "app": (0, 0, ""),
    "sidecar": (SIDECAR_UID, SIDECAR_UID, ""),
    "sidecar's uid": (SIDECAR_UID, OTHER_USER, ""),
    "sidecar's gid": (OTHER_USER, SIDECAR_UID, ""),
    "sidecar to its app": (SIDECAR_UID, SIDECAR_UID, INBOUND_SOURCE),
}
#: What a connection is, by the counter that moves.
LEGS = {"outbound_connects": "outbound", "mesh_connects": "mesh", "inbound_connects": "inbound"}


@pytest.fixture
def rig():
    rig = Rig(proxy=False)
    try:
        yield rig
    finally:
        rig.close()


def agents(rig: Rig, place) -> dict[str, Agent]:
    """Return a process of the pod for each of WHO."""
    found = {"app": place.app, "sidecar": place.sidecar, "sidecar to its app": place.sidecar}
    for who in ("sidecar's uid", "sidecar's gid"):
        uid, gid, _ = WHO[who]
        found[who] = Agent(place.cgroup / "app", str(place.app.netns), uid, gid)
        rig.stack.callback(found[who].end)
    return found


def is_local(ip: str, own: str) -> bool:
    return ip == own or ip.startswith("127.")


def packet(who: str, to: annotated_pods.Destination, own: str) -> Packet:
    uid, gid, bound = WHO[who]
    source = bound or ("127.0.0.1" if to.ip.startswith("127.") else own)
    return Packet(to.ip, to.port, source, "lo" if is_local(to.ip, own) else "eth0", uid=uid, gid=gid)


def dial(agent: Agent, who: str, to: annotated_pods.Destination, *, v6: bool = False) -> None:
    bound = WHO[who][2]
    prefix = "::ffff:" if v6 else ""
    request = {"bind": [prefix + bound, 0]} if bound else {}
    agent.ask(op="begin", to=[prefix + to.ip, to.port], v6=v6, **request)[1].close()


def expected(who: str, to: annotated_pods.Destination, own: str, nat: Nat, servers: Nat) -> tuple[str, int | None]:
    """Return the leg that eBPF must make of a connection, and where the rules redirect it in the pod that dials.

    Where the leg is "untouched", the rules decide as without eBPF.
    """
    seen = packet(who, to, own)
    port = nat.port("OUTPUT", seen)
    if who == "app":
        return ("outbound" if port == OUTBOUND_PORT and not is_local(to.ip, own) else "untouched"), port
    if to.ip == own:
        if seen.src == INBOUND_SOURCE:
            return "inbound", port
        return ("mesh" if port == INBOUND_PORT and seen.uid == SIDECAR_UID else "untouched"), port
    if to.ip == IPS["hello"] and servers.port("PREROUTING", Packet(to.ip, to.port, own, into="eth0")) == INBOUND_PORT:
        return "mesh", port
    return "untouched", port


class Pods:
    """Sets the annotations of the two pods that are served, as an agent would."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        rig.attach()
        self.cookies = {place.name: place.cookie for place in (rig.sleep, rig.hello)}

    def set(self, sleep: dict[str, str], hello: dict[str, str]) -> None:
        rig = self.rig
        rig.sleep.interception, rig.hello.interception = map(istio_annotations.parse, (sleep, hello))
        pins, endpoints = rig.plane._pins, rig.endpoints
        for each in endpoints:
            interception_lists.write(pins, self.cookies[each.name], each.interception)
            attaching._register_endpoint(pins, each, self.cookies[each.name])

    def legs(self) -> Counter[str]:
        moved = self.rig.counters("sleep")
        return Counter({leg: moved[name] for name, leg in LEGS.items()})


def drain(listener) -> None:
    """Accept and close what waits: a full queue would look like a port that is left alone."""
    listener.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()


def test_programs_and_rules_decide_alike(rig):
    rng = random.Random(SEED)  # noqa: S311 - no secret
    pods, own, from_inside = Pods(rig), rig.sleep.ip, agents(rig, rig.sleep)
    listener = rig.hello.sidecar.listen(INBOUND_PORT)
    tally: Counter[str] = Counter()
    with listener:
        for number in range(CONFIGURATIONS):
            sleep, hello = (annotated_pods.annotations(rng) for _ in range(2))
            pods.set(sleep, hello)
            nat, servers = (Nat(rule_templates.pod_rules(tuple(each.items()))) for each in (sleep, hello))
            what = f"seed {SEED}, configuration {number}: sleep {sleep}, hello {hello}"
            for _ in range(6):
                who = rng.choice(("app", "app", *WHO))
                to = annotated_pods.destination(rng, sleep, OTHERS)
                if to.ip in NOWHERE:
                    continue
                if WHO[who][2] and not is_local(to.ip, own):
                    to = to._replace(ip=own)
                wanted, redirected = expected(who, to, own, nat, servers)
                before = pods.legs()
                dial(from_inside[who], who, to, v6=rng.random() < 0.3)
                leg = "".join((pods.legs() - before).elements()) or "untouched"
                assert leg == wanted, f"{who} dials {to}; {what}"
                # What eBPF takes, the rules would have brought to the same place.
                if leg == "outbound":
                    assert redirected == OUTBOUND_PORT
                # What it leaves, they redirect only within the pod: they do so with eBPF as well.
                if leg == "untouched" and redirected:
                    assert is_local(to.ip, own)
                tally[f"{who}: {leg}, rules {redirected}"] += 1
            drain(listener)
            for _ in range(2):
                port = annotated_pods.destination(rng, hello, OTHERS).port
                answer, sock = rig.node.dial(rig.hello.ip, port)
                if sock:
                    sock.close()
                drain(listener)
                wanted_port = servers.port("PREROUTING", Packet(rig.hello.ip, port, NODE_IP, into="eth0"))
                reaches = INBOUND_PORT in (wanted_port, port)
                assert bool(sock) == reaches, f"the node dials port {port}, answer {answer}; {what}"
                tally[f"node: {'steered' if reaches else 'left'}"] += 1
    rig.attach()
    assert [each for each in rig.problems() if "listener" not in each] == []
    # Every outcome was seen, and often: a generator that never excludes would prove nothing.
    seen = {
        "app: outbound, rules 15001", "app: untouched, rules None", "sidecar: mesh, rules None",
        "sidecar: mesh, rules 15006", "sidecar: untouched, rules None", "sidecar to its app: inbound, rules None",
        "node: steered", "node: left",
    }  # fmt: skip
    assert {each for each in seen if tally[each] < 20} == set(), tally


def hits(place) -> Counter[int]:
    """Return how often the kernel has redirected a connection, by port."""
    text = place.app.sh("iptables-nft-save", "-c", "-t", "nat")
    lines = [line for line in text.splitlines() if "--to-ports" in line]
    return Counter({int(line.split()[-1]): int(line[1:].split(":")[0]) for line in lines})


def test_the_kernel_evaluates_the_rules_as_the_model_does(rig):
    rng = random.Random(SEED + 1)  # noqa: S311 - no secret
    place = rig.control_client
    own, from_inside = place.ip, agents(rig, place)
    tally: Counter[str] = Counter()
    try:
        for number in range(RULED):
            made = annotated_pods.annotations(rng)
            text = rule_templates.pod_rules(tuple(made.items()))
            place.rules(text)
            nat = Nat(place.app.sh("iptables-nft-save"))
            what = f"seed {SEED}, configuration {number}: {made}"
            for _ in range(5):
                who, to = rng.choice(("app", "app", *WHO)), annotated_pods.destination(rng, made, OTHERS)
                if to.ip in NOWHERE:
                    continue
                if WHO[who][2] and not is_local(to.ip, own):
                    to = to._replace(ip=own)
                port = nat.port("OUTPUT", packet(who, to, own))
                assert port == Nat(text).port("OUTPUT", packet(who, to, own))
                before = hits(place)
                dial(from_inside[who], who, to)
                assert list((hits(place) - before).elements()) == ([port] if port else []), f"{who}, {to}; {what}"
                tally[f"{who}: {port}"] += 1
            arriving = annotated_pods.destination(rng, made, OTHERS).port
            port = nat.port("PREROUTING", Packet(own, arriving, NODE_IP, into="eth0"))
            before = hits(place)
            sock = rig.node.dial(own, arriving)[1]
            if sock:
                sock.close()
            assert list((hits(place) - before).elements()) == ([port] if port else []), f"port {arriving}; {what}"
            tally[f"node: {port}"] += 1
    finally:
        for table in ("nat", "filter"):
            place.app.sh("iptables-nft", "-t", table, "-F")
            place.app.sh("iptables-nft", "-t", table, "-X")
    seen = {"app: 15001", "app: None", "node: 15006", "node: None"}
    assert {each for each in seen if tally[each] < 5} == set(), tally


# -- real traffic, through sidecars that proxy ------------------------------------------------------------------------


@pytest.fixture
def served():
    with contextlib.closing(Rig()) as rig:
        yield rig


def peer_of(listener: socket.socket, client: socket.socket) -> str:
    """Return the address that the app at the end of a connection sees, after a byte went there and back."""
    listener.settimeout(5)
    app, peer = listener.accept()
    with client, app:
        client.sendall(b"?")
        assert app.recv(1) == b"?"
        app.sendall(b"!")
        assert client.recv(1) == b"!"
    return peer[0]


@pytest.mark.parametrize("rules", [False, True])
def test_excluded_connections_go_past_the_sidecars(served, rules):
    """With rules and without: eBPF leaves them alone, as the rules do."""
    rig, excluded = served, {"5001": "excludeOutboundPorts", "5002": "excludeInboundPorts"}
    both = {annotated_pods.TRAFFIC + name: port for port, name in excluded.items()}
    for place in (rig.sleep, rig.hello):
        place.interception = istio_annotations.parse(both)
        if rules:
            place.rules(rule_templates.pod_rules(tuple(both.items())))
    rig.attach()
    assert rig.problems() == []
    # Port 5000 is nobody's exclusion. The client's sidecar gets no 5001, the server's no 5002.
    ways = {5000: ("127.0.0.6", 1, 1), 5001: (rig.sleep.ip, 0, None), 5002: (rig.sleep.ip, 1, 0)}
    for port, (seen, outbound, mesh) in ways.items():
        with rig.hello.app.listen(port) as listener:
            before = rig.counters("sleep")
            peer = peer_of(listener, rig.sleep.app.connect(rig.hello.ip, port))
            moved = {name: value - before[name] for name, value in rig.counters("sleep").items()}
            assert moved["outbound_connects"] == outbound
            if mesh is None:  # past the own sidecar, but not past the server's
                assert peer == "127.0.0.6"
                continue
            assert (peer, moved["mesh_connects"]) == (seen, mesh)
    assert rig.counters("hello")["refused_handovers"] == 0


@pytest.mark.parametrize("rules", [False, True])
@pytest.mark.parametrize("user", [1500, 0x10000 + SIDECAR_UID])
def test_a_sidecar_of_another_user_makes_no_loop(served, user, rules):
    """As with OpenShift's ranges, or a user namespace: its own dials are never taken for the app's."""
    rig = served
    for place in (rig.sleep, rig.hello):
        place.sidecar.end()
        place.start_sidecar(user)
        if rules:
            place.rules(rule_templates.pod_rules().replace(str(SIDECAR_UID), str(user)))
    assert {place.endpoint.sidecar.uid for place in (rig.sleep, rig.hello)} == {user}
    rig.attach()
    assert rig.problems() == []
    with rig.hello.app.listen(5000) as listener:
        assert peer_of(listener, rig.sleep.app.connect(rig.hello.ip, 5000)) == "127.0.0.6"
    sleep, hello = rig.counters("sleep"), rig.counters("hello")
    assert (sleep["outbound_connects"], sleep["mesh_connects"], sleep["accepted_outbound"]) == (1, 1, 1)
    assert (hello["outbound_connects"], hello["inbound_connects"], hello["accepted_mesh"]) == (0, 1, 1)


def test_what_a_pod_dials_is_left_alone_until_its_sidecar_is_known(served):
    """The control to the above: told of no sidecar, eBPF takes nobody's dials; told of it, it takes the app's."""
    rig = served
    unknown = replace(rig.sleep.endpoint, sidecar=None)
    rig.plane.attach([unknown, rig.hello.endpoint])
    for agent in (rig.sleep.sidecar, rig.sleep.app):
        with rig.hello.app.listen(5000) as listener:
            before = rig.counters("sleep")
            # Past the client's sidecar; the server's takes it in.
            assert peer_of(listener, agent.connect(rig.hello.ip, 5000)) == "127.0.0.6"
            moved = rig.counters("sleep")
            assert moved["outbound_connects"] == before["outbound_connects"] == 0
            assert moved["untouched_connects"] == before["untouched_connects"] + 1
    rig.attach()
    assert rig.problems() == []
    with rig.hello.app.listen(5000) as listener:
        assert peer_of(listener, rig.sleep.app.connect(rig.hello.ip, 5000)) == "127.0.0.6"
    assert rig.counters("sleep")["outbound_connects"] == 1
    # A sidecar that has ended stays known by its user.
    rig.plane.attach([unknown, rig.hello.endpoint])
    assert rig.plane._pins.pods()[rig.sleep.cookie]["uid"] == SIDECAR_UID


def test_a_pod_that_is_left_to_the_rules_is_not_served(served):
    rig = served
    rig.attach()
    left = replace(rig.sleep.endpoint, left_to_rules="a reason")
    endpoints = [left, rig.hello.endpoint]
    rig.plane.attach(endpoints)
    assert rig.plane.problems(endpoints) == []
    assert [pod["name"] for pod in rig.plane._pins.pods().values()] == ["hello"]
    assert set(rig.plane.counters()) == {"hello"}


def test_changed_exclusions_are_told_and_mended(served):
    rig = served
    rig.hello.interception = istio_annotations.parse({annotated_pods.TRAFFIC + "excludeInboundPorts": "5000"})
    rig.attach()
    pins = rig.plane._pins
    for name, size in (("ports", 16), ("ranges", 16)):
        key = interception_lists.entries(
            istio_annotations.parse({annotated_pods.TRAFFIC + "excludeOutboundPorts": "7"}
            if name == "ports" else {annotated_pods.TRAFFIC + "excludeOutboundIPRanges": "10.0.0.0/8"}),
            rig.hello.cookie,
        )[name].popitem()  # fmt: skip
        assert len(key[0]) == size
        with pins.open_map(name) as fd:
            bpf_maps.update(fd, *key)
        told = f"the map {name} holds other exclusions for pod hello than its annotations and routes demand"
        assert rig.problems() == [told]
        rig.attach()
        assert rig.problems() == []
    # A pod that is no longer served leaves nothing.
    rig.plane.attach([rig.sleep.endpoint])
    with pins.open_map("ports") as fd:
        assert bpf_maps.keys(fd, 16) == []


IN_USER_NAMESPACE = """
import ctypes, os, sys
assert ctypes.CDLL(None).unshare(0x10000000) == 0
print("made", flush=True)
sys.stdin.readline()  # mapped
os.setgroups([])
os.setresgid(1337, 1337, 1337)
os.setresuid(1337, 1337, 1337)
print(os.getuid(), flush=True)
sys.stdin.readline()
"""


def test_a_sidecar_in_a_user_namespace_has_the_nodes_number():
    """As with hostUsers: false. The programs and sockets of the node know it by that number, too."""
    argv = [sys.executable, "-I", "-S", "-c", IN_USER_NAMESPACE]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "made\n"
        for kind in ("uid", "gid"):
            Path(f"/proc/{process.pid}/{kind}_map").write_text("0 100000 65536\n")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "1337\n"
        found = sidecar_of(process.pid)
        process.stdin.close()
    assert (found.uid, found.gid) == (101337, 101337)


def test_a_process_that_has_ended_has_no_user():
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(LabError, match=r"the user of the sidecar \(pid \d+\) is not known: the process cannot be read"):
        sidecar_of(process.pid)
