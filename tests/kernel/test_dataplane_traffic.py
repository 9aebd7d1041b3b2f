"""Traffic through the dataplane, on this kernel: three legs, with and without Istio's rules, and what is left alone."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import socket
import subprocess
import threading
import time

import pytest
from dataplane_rig import NODE_IP, RULES, Agent, NodeView, Rig, until

pytestmark = pytest.mark.kernel

PORT = 5000
LEGS = ("outbound", "mesh", "inbound")


@pytest.fixture(scope="module")
def rig(shared):
    shared.attach()
    return shared


@pytest.fixture(scope="module")
def server(rig):
    with rig.hello.app.listen(PORT) as listener:
        yield listener


@pytest.fixture
def ruled(rig):
    """Istio's rules in both pods and the control client, for the duration of a test."""
    with rules_in((rig.sleep, rig.hello, rig.control_client)):
        yield


@contextlib.contextmanager
def rules_in(places):
    for place in places:
        place.rules(RULES)
    yield
    for place in places:
        place.app.sh("iptables-nft", "-t", "nat", "-F")
        place.app.sh("iptables-nft", "-t", "nat", "-X")


def talk(client: socket.socket, server: socket.socket, sizes=(1000,)):
    """Run one connection: each size there and back, then closed by both; return the address the application saw."""
    app, peer = server.accept()
    with client, app:
        app.settimeout(10)
        for size in sizes:
            message = os.urandom(size)
            client.sendall(message)
            assert receive(app, size) == message
            app.sendall(message[::-1])
            assert receive(client, size) == message[::-1]
        client.shutdown(socket.SHUT_WR)
        assert app.recv(1) == b""
    return peer


def receive(sock: socket.socket, size: int) -> bytes:
    parts, missing = [], size
    while missing and (part := sock.recv(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def grown(before: dict, after: dict) -> dict:
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


def empty(rig: Rig) -> bool:
    from merbridge_lab.adapters import bpf_maps
    from merbridge_lab.dataplane import abi
    from merbridge_lab.dataplane.pins import Pins

    sizes = {"pairs": abi.layouts()["handshake"].size, "peers": abi.layouts()["end"].size}
    for name, size in sizes.items():
        with Pins(rig.pins).open_map(name) as fd:
            if bpf_maps.keys(fd, size):
                return False
    return True


def served_by_both(rig: Rig, server: socket.socket, address: str, **more) -> tuple[dict, dict]:
    before = rig.counters("sleep"), rig.counters("hello")
    client = rig.sleep.app.connect(address, PORT, **more)
    assert talk(client, server)[0] == "127.0.0.6"
    after = rig.counters("sleep"), rig.counters("hello")
    until(lambda: empty(rig), "the maps are empty again")
    sleep, hello = rig.sleep.log()[-1], rig.hello.log()[-1]
    assert (sleep["inbound"], sleep["original"]) == (False, [rig.hello.ip, PORT])
    assert (hello["inbound"], hello["original"]) == (True, [rig.hello.ip, PORT])
    return grown(before[0], after[0]), grown(before[1], after[1])


def all_legs_moved(sleep: dict, hello: dict) -> None:
    assert sleep["outbound_connects"] == sleep["mesh_connects"] == sleep["accepted_outbound"] == 1
    assert hello["inbound_connects"] == hello["accepted_mesh"] == hello["accepted_inbound"] == 1
    assert sleep["outbound_redirected_bytes"] == 2000  # there, and back: both ends are in this pod
    assert sleep["mesh_redirected_bytes"] == hello["mesh_redirected_bytes"] == 1000
    assert hello["inbound_redirected_bytes"] == 2000
    assert sleep["original_dst_answered"] == hello["original_dst_answered"] == 1
    assert not [name for name in (*sleep, *hello) if name.startswith(("passed", "map_full"))]


@pytest.mark.smoke
def test_three_legs_without_rules(rig, server):
    all_legs_moved(*served_by_both(rig, server, rig.hello.ip))
    (peer, local), client = rig.sleep.app.dial(rig.hello.ip, PORT)
    assert peer == [rig.hello.ip, PORT], "the application sees what it asked for"
    assert local[0] == rig.sleep.ip
    talk(client, server)


@pytest.mark.usefixtures("ruled")
def test_three_legs_with_rules(rig, server):
    before = rig.sleep.redirected_packets()
    all_legs_moved(*served_by_both(rig, server, rig.hello.ip))
    assert rig.sleep.redirected_packets() == before
    # The control: the same rule sees the same dial by a control client.
    before = rig.control_client.redirected_packets()
    with rig.control_client.app.connect(rig.hello.ip, PORT) as client:
        assert talk(client, server)[0] == "127.0.0.6"
    assert rig.control_client.redirected_packets() == before + 1


def test_v4_mapped_client(rig, server):
    mapped = f"::ffff:{rig.hello.ip}"
    all_legs_moved(*served_by_both(rig, server, mapped, v6=True))
    (peer, local), client = rig.sleep.app.dial(mapped, PORT, v6=True)
    assert peer == [mapped, PORT]
    assert local[0] == f"::ffff:{rig.sleep.ip}"
    talk(client, server)


def test_dual_stack_server(rig):
    with rig.hello.app.listen(PORT + 1, at="::", v6=True) as listener:
        before = rig.counters("hello")
        assert talk(rig.sleep.app.connect(rig.hello.ip, PORT + 1), listener)[0] == "::ffff:127.0.0.6"
        assert grown(before, rig.counters("hello"))["inbound_redirected_bytes"] == 2000


def test_client_with_a_port_of_its_own(rig, server):
    all_legs_moved(*served_by_both(rig, server, rig.hello.ip, bind=["0.0.0.0", 45454]))


def test_loopback_and_own_address_are_untouched(rig):
    for address in ("127.0.0.1", "0.0.0.0", rig.sleep.ip):
        with rig.sleep.app.listen(6000) as listener:
            before = rig.counters("sleep")
            talk(rig.sleep.app.connect(address, 6000), listener)
            assert grown(before, rig.counters("sleep")) == {"untouched_connects": 1}


def test_infrastructure_ports_of_a_sidecar_are_untouched(rig):
    for port in (15008, 15020, 15021, 15090):
        with rig.hello.sidecar.listen(port) as listener:
            before = rig.counters("sleep"), rig.counters("hello")
            client = rig.sleep.sidecar.connect(rig.hello.ip, port)
            assert talk(client, listener)[0] == rig.sleep.ip
            assert grown(before[0], rig.counters("sleep")) == {"untouched_connects": 1}
            assert grown(before[1], rig.counters("hello")) == {}


@pytest.mark.parametrize("rules", [False, True])
def test_a_sidecar_that_calls_its_own_pod(rig, server, rules, request):
    if rules:
        request.getfixturevalue("ruled")
    before = rig.counters("hello")
    assert talk(rig.hello.sidecar.connect(rig.hello.ip, PORT), server)[0] == "127.0.0.6"
    moved = grown(before, rig.counters("hello"))
    assert (moved["mesh_redirected_bytes"], moved["inbound_redirected_bytes"]) == (2000, 2000)
    assert rig.hello.log()[-1]["original"] == [rig.hello.ip, PORT]


@pytest.mark.parametrize("rules", [False, True])
def test_client_outside_the_mesh_is_steered(rig, server, rules, request):
    if rules:
        request.getfixturevalue("ruled")
    before = rig.counters("hello")
    assert talk(rig.node.connect(rig.hello.ip, PORT), server)[0] == "127.0.0.6"
    moved = grown(before, rig.counters("hello"))
    assert moved.get("sk_lookup_assigned", 0) == moved.get("original_dst_local", 0) == (0 if rules else 1)
    assert moved["inbound_redirected_bytes"] == 2000
    entry = rig.hello.log()[-1]
    assert (entry["peer"][0], entry["original"]) == (NODE_IP, [rig.hello.ip, PORT])


#: As the user of a sidecar: return the kernel's unchanged answer to SO_ORIGINAL_DST on the given descriptors.
ASK = """
import json, socket, sys
def ask(number):
    with socket.socket(fileno=number) as sock:
        try:
            return sock.getsockopt(socket.SOL_IP, 80, 16).hex()
        except OSError as failed:
            return failed.errno
print(json.dumps([ask(int(number)) for number in sys.argv[1:]]))
"""


def original_dst_of_established(rig: Rig, place: NodeView) -> dict[str, str | int]:
    """Return sockets of a sidecar's user that neither connect() nor sk_lookup has touched."""
    with contextlib.ExitStack() as stack:

        def pair(dialling: Agent, listening: Agent, ip: str, port: int):
            listener = stack.enter_context(listening.listen(port))
            return stack.enter_context(dialling.connect(ip, port)), stack.enter_context(listener.accept()[0])

        sidecar = place.sidecar
        found = {
            "dialled, outside the mesh": pair(sidecar, rig.node, NODE_IP, 7100)[0],
            "accepted, on a port of Istio's": pair(rig.node, sidecar, place.ip, 15020)[1],
        }
        found["dialled, on the loopback"], found["accepted, on the loopback"] = pair(
            sidecar, sidecar, "127.0.0.1", 7101
        )
        numbers = [sock.fileno() for sock in found.values()]
        argv = ["/usr/bin/python3", "-I", "-S", "-c", ASK, *map(str, numbers)]
        done = subprocess.run(
            argv, check=True, capture_output=True, text=True, timeout=10, pass_fds=numbers, user=1337, group=1337
        )
        return dict(zip(found, json.loads(done.stdout), strict=True))


def test_so_original_dst_of_established_sockets_that_are_not_ours(rig):
    """As without the dataplane: in a pod and in one that is not served, with Istio's rules and without."""
    places = (rig.hello, rig.control_client)

    def told() -> list[dict[str, str | int]]:
        return [original_dst_of_established(rig, place) for place in places]

    rig.plane.detach(1.0)
    try:
        reference = told()
        with rules_in(places):
            reference += told()
    finally:
        rig.attach()
    assert set(reference[0].values()) == {errno.ENOENT}, "no connection tracking, no answer"
    before = rig.plane.counters()
    seen = told()
    with rules_in(places):
        seen += told()
    assert seen == reference
    after = rig.plane.counters()
    assert not [name for pod in after for name in grown(before[pod], after[pod]) if name.startswith("original_dst")]


def test_a_twin_is_not_served(rig):
    before = rig.plane.counters()
    assert rig.control_client.app.dial("10.99.7.99", PORT)[1] is None, "nobody there, and no sidecar that would accept"
    with rig.control_client.app.listen(6001) as listener:
        assert talk(rig.node.connect(rig.control_client.ip, 6001), listener)[0] == NODE_IP
    assert rig.plane.counters() == before


def test_refused_as_by_rules(rig):
    # Nobody listens on the port: the sidecar accepts, learns this, and closes.
    with rig.sleep.app.connect(rig.hello.ip, 5999) as client:
        assert client.recv(1) == b""
    until(lambda: empty(rig), "the maps are empty again")


def test_a_receiver_that_does_not_read_blocks_its_sender(rig, server):
    client = rig.sleep.app.connect(rig.hello.ip, PORT)
    app, _ = server.accept()
    with client, app:
        client.setblocking(False)
        block, sent, last = b"x" * 65536, 0, time.monotonic()
        while time.monotonic() - last < 0.5:
            try:
                sent += client.send(block)
                last = time.monotonic()
                assert sent < 200 << 20, "no flow control"
            except BlockingIOError:
                time.sleep(0.002)
        (last_leg,) = [pair for pair in rig.plane.pairs() if pair.leg == "inbound"]
        assert 1 << 20 < last_leg.redirected_bytes[0] <= (2 << 20) + 65536 * 2, "nobody read any of it"
        assert last_leg.on_tcp == (True, False)
        assert sent <= 32 << 20
        app.settimeout(10)
        assert len(receive(app, sent)) == sent, "and not a byte is lost"


def test_a_receiver_with_a_small_buffer(rig):
    with rig.hello.app.listen(PORT + 2, rcvbuf=65536) as listener:
        before = rig.counters("hello")
        talk(rig.sleep.app.connect(rig.hello.ip, PORT + 2), listener, (300_000, 10, 300_000))
        assert grown(before, rig.counters("hello"))["inbound_redirected_bytes"] >= 300_000


def stream(client: socket.socket, server: socket.socket, seed: int) -> list[str]:
    """Send random amounts both ways at once, half-close when sent; return what went wrong."""
    rng = random.Random(seed)  # noqa: S311
    app, _ = server.accept()
    wrong: list[str] = []

    def send(sock: socket.socket, data: bytes) -> None:
        at = 0
        while at < len(data):
            step = rng.choice((1, 100, 4096, 70_000, 500_000))
            sock.sendall(data[at : at + step])
            at += step
        sock.shutdown(socket.SHUT_WR)

    def check(sock: socket.socket, want: bytes, who: str) -> None:
        got = receive(sock, len(want) + 1)
        if hashlib.sha256(got).digest() != hashlib.sha256(want).digest():
            wrong.append(f"{who} of {seed} got {len(got)} of {len(want)} bytes, not what was sent")

    there, back = rng.randbytes(rng.choice((1, 5000, 300_000, 3_000_000))), rng.randbytes(rng.randrange(1, 400_000))
    with client, app:
        for sock in (client, app):
            sock.settimeout(20)
        jobs = [(send, client, there), (send, app, back), (check, app, there, "app"), (check, client, back, "client")]
        threads = [threading.Thread(target=job, args=args) for job, *args in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    return wrong


def test_streams_arrive_whole(rig, server):
    # One after the other through accept(), so that the ends of a stream are known; both directions at once.
    for seed in range(24):
        assert stream(rig.sleep.app.connect(rig.hello.ip, PORT), server, seed) == []
    until(lambda: empty(rig), "the maps are empty again")


def test_resets_leave_nothing(rig):
    with rig.hello.app.listen(PORT + 3):  # accepts by the backlog; some resets are faster than the sidecar
        for number in range(20):
            client = rig.sleep.app.connect(rig.hello.ip, PORT + 3)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if number % 2:
                client.sendall(b"unread")
            client.close()
    until(lambda: empty(rig), "the maps are empty again")


def test_connection_to_nowhere_of_the_mesh(rig):
    # Outside the mesh the sidecar dials as it is told; here nobody answers, which the node reports by ICMP.
    with rig.node.listen(7000) as listener:
        before = rig.counters("sleep")
        assert talk(rig.sleep.app.connect(NODE_IP, 7000), listener)[0] == rig.sleep.ip
        moved = grown(before, rig.counters("sleep"))
        assert (moved["outbound_connects"], moved["untouched_connects"]) == (1, 1)
    assert rig.sleep.sidecar.dial(NODE_IP, 7001)[0] == errno.ECONNREFUSED


def test_large_socket_options_come_back_whole(rig):
    # iptables reads its table with getsockopt(); a program that read only one page of it would cut it.
    many = "".join(f"-A INPUT -s 192.0.2.{n % 250}/32 -p tcp --dport {n} -j ACCEPT\n" for n in range(1, 120))
    rig.sleep.app.sh("iptables-legacy-restore", stdin=f"*filter\n{many}COMMIT\n")
    procs = rig.mesh / "sleep/app/cgroup.procs"
    got = subprocess.run(
        ["sh", "-c", f"echo $$ > {procs}; exec nsenter --net=/proc/{rig.sleep.app.pid}/ns/net iptables-legacy-save"],
        check=True, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert got.stdout.count("-A INPUT") == 119
    rig.sleep.app.sh("iptables-legacy", "-F", "INPUT")
