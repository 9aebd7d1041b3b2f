"""Bytes through real sidecars: with eBPF, Istio's rules present and flushed; and with only the rules, the reference."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from dataplane_rig import until

from byte_streams import BLOCK, LENGTH, Meeting, Plan, Tally, play
from streams_lab import ECHO_VIP, Scene, mem_pages

pytestmark = pytest.mark.kernel

#: Printed with every failure; to repeat the same streams: MERLAB_SEED=...
SEED = int(os.environ.get("MERLAB_SEED", "0")) or time.time_ns() % 1_000_000_000
WAYS = ("reference", "rules present", "rules flushed")
LET_IN = 32 << 20
HIGH_WATER = 2 << 20


@pytest.fixture(scope="module")
def scene():
    scene = Scene()
    scene.log_ends()
    try:
        yield scene
    finally:
        scene.close()


@pytest.fixture(params=WAYS)
def way(request, scene):
    """The lab in one of the ways that a connection can take; the maps must be empty afterwards."""
    with contextlib.ExitStack() as stack:
        if request.param == "reference":
            scene.detach()
        else:
            scene.attach()
            if request.param == "rules flushed":
                stack.enter_context(scene.flushed())
        yield request.param
        if request.param != "reference":
            scene.empty()


def streams(scene: Scene, count: int, largest: int, width: int = 12) -> Tally:
    tally, dialling, unsaid = Tally(), threading.Lock(), scene.unsaid_ends()
    with scene.servers() as listeners, contextlib.closing(Meeting(listeners)) as meeting:

        def one(number: int):
            plan = Plan.of(SEED + number, largest)
            with dialling:
                client = scene.connect()
            return plan, *play(plan, client, meeting.server_of(plan.seed, client))

        with ThreadPoolExecutor(width) as pool:
            for done in pool.map(one, range(count)):
                tally.add(*done)
    print(f"MERLAB_SEED={SEED}: {tally}")  # noqa: T201
    if tally.held:  # each by a sidecar that could not say it (docs/limits.md), and by nothing else
        until(lambda: scene.unsaid_ends() - unsaid >= tally.held, f"{tally.held} ends were not said by Envoy", 5)
    return tally


def test_streams_arrive_whole(scene, way):
    before = scene.counter("sleep", "outbound_redirected_bytes") if way != "reference" else 0
    tally = streams(scene, 150, 3_000_000)
    tally.wrong += (big := streams(scene, 8, 20_000_000)).wrong
    assert tally.wrong == [], f"MERLAB_SEED={SEED}"
    assert tally.cut <= 5, "Envoy's doing, seldom, and no more often than by the rules alone"
    assert tally.held <= 1
    if way != "reference":
        assert scene.counter("sleep", "outbound_redirected_bytes") > before + (tally.bytes + big.bytes) // 4


@pytest.mark.soak
@pytest.mark.parametrize(("way", "count"), list(zip(WAYS, (10000, 5000, 5000), strict=True)), indirect=["way"])
def test_thousands_of_streams_arrive_whole(scene, way, count):
    tally = streams(scene, count, 20_000_000, 16)
    assert tally.wrong == [], f"MERLAB_SEED={SEED}, {way}"
    assert tally.cut <= count // 100
    assert tally.held <= count // 1000


def talkers(scene: Scene, listeners, direction: str) -> tuple[socket.socket, socket.socket]:
    """Yield a connection: who sends and who receives."""
    client = scene.connect()
    client.sendall(b"?")  # a sidecar dials its application when there is something to say
    ready, _, _ = select.select(listeners, [], [], 10)
    server = ready[0].accept()[0]
    server.settimeout(20)
    assert server.recv(1) == b"?"
    return (client, server) if direction == "upload" else (server, client)


def fill(sender: socket.socket, quiet: float = 0.4) -> int:
    """Send until the sender has been blocked for `quiet` seconds; return how much was accepted."""
    sent = 0
    poll = select.poll()
    poll.register(sender, select.POLLOUT)
    while poll.poll(quiet * 1000):
        at = sent % LENGTH
        sent += sender.send(memoryview(BLOCK)[at : at + 65536], socket.MSG_DONTWAIT)
        assert sent < 10 * LET_IN, "no flow control"
    return sent


def drain(receiver: socket.socket, size: int, pause: float = 0.0) -> None:
    """Read `size` bytes and check that they are what fill() sent."""
    got = 0
    while got < size:
        data = receiver.recv(min(500_000, size - got))
        assert data, f"the end after {got} of {size} bytes"
        at = got % LENGTH
        assert memoryview(BLOCK)[at : at + len(data)] == data, f"wrong at {got}"
        got += len(data)
        if pause:
            time.sleep(pause * len(data) / 500_000)


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_a_receiver_that_does_not_read_blocks_its_sender(scene, way, direction):
    with scene.servers() as listeners:
        before = mem_pages(scene.sleep.netns)
        sender, receiver = talkers(scene, listeners, direction)
        with sender, receiver:
            sent = fill(sender)
            grown = (mem_pages(scene.sleep.netns) - before) * 4096
            print(f"{way}, {direction}: let in {sent / 1e6:.1f} MB, TCP holds {grown / 1e6:.1f} MB more")  # noqa: T201
            assert 1 << 20 < sent <= LET_IN
            assert grown <= 3 * LET_IN, "three legs"
            receiver.settimeout(20)
            drain(receiver, sent)
            assert fill(sender) > 1 << 20, "and it goes on"
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("direction", ["upload", "download"])
def test_a_receiver_of_one_megabyte_a_second(scene, direction):
    with scene.servers() as listeners:
        sender, receiver = talkers(scene, listeners, direction)
        with sender, receiver:
            receiver.settimeout(20)
            sent = fill(sender)
            drain(receiver, 1_000_000, pause=0.5)
            more = fill(sender) if sent < LET_IN else 0
            assert more <= LET_IN
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("direction", ["upload", "download"])
def test_a_hundred_megabytes(scene, direction):
    size = 100_000_000
    sizes = (size, 1) if direction == "upload" else (1, size)
    with scene.servers() as listeners, contextlib.closing(Meeting(listeners)) as meeting:
        tally = Tally()
        plan = Plan(SEED, sizes, waits=1 if direction == "upload" else 0)
        client = scene.connect()
        tally.add(plan, *play(plan, client, meeting.server_of(SEED, client)))
    assert tally.wrong == []


def test_a_hundred_megabytes_with_neither_rules_nor_ebpf(scene):
    """The fourth way, without any sidecar: directly to the application."""
    scene.detach()
    with scene.flushed(), scene.servers() as listeners, contextlib.closing(Meeting(listeners)) as meeting:
        tally = Tally()
        for seed, sizes in ((SEED, (100_000_000, 1)), (SEED + 1, (1, 100_000_000))):
            client = scene.connect(ECHO_VIP)
            server = meeting.server_of(seed, client)
            assert server.getpeername()[0] == scene.sleep.spec.ip, "no sidecar in between"
            tally.add(plan := Plan(seed, sizes), *play(plan, client, server))
    assert tally.wrong == []


@contextlib.contextmanager
def descriptors(count: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        pytest.skip(f"{count} descriptors are needed, {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def many(scene: Scene, count: int) -> None:
    """Open so many connections at once, each of which carries something both ways while all exist."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(descriptors(2 * count + 500))
        meeting = stack.enter_context(contextlib.closing(Meeting(stack.enter_context(scene.servers()))))
        ends = []
        for number in range(count):
            client = stack.enter_context(scene.connect())
            ends.append((client, stack.enter_context(meeting.server_of(number, client))))
        legs = [pair.leg for pair in scene.lab.dataplane.pairs()]
        assert {leg: legs.count(leg) for leg in set(legs)} == dict.fromkeys(("outbound", "mesh", "inbound"), count)
        for turn in range(2):
            for number, (client, _) in enumerate(ends):
                client.sendall(b"%d ask" % (number + turn))
            for number, (client, server) in enumerate(ends):
                server.settimeout(20), client.settimeout(20)
                assert server.recv(100) == b"%d ask" % (number + turn)
                server.sendall(b"%d tell" % number)
            for number, (client, _) in enumerate(ends):
                assert client.recv(100) == b"%d tell" % number
    until(lambda: not scene.leftovers(), "no entry is left", 30)


def test_hundreds_of_connections_at_once(scene):
    scene.attach()
    many(scene, 400)


@pytest.mark.soak
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("way", WAYS[1:], indirect=True)
def test_eight_thousand_connections_at_once(scene):
    many(scene, 8000)
