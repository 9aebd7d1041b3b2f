"""The trace in ring buffers: several readers at once, one that is killed, one that is too slow, two labs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from dataplane_rig import Rig, until

from merbridge_lab import errors
from merbridge_lab.adapters import bpf_maps, bpf_syscall
from merbridge_lab.dataplane import abi, trace_ring
from merbridge_lab.dataplane.pins import Pins, u32

pytestmark = pytest.mark.kernel

PORT = 5000
#: What one request's first connection leaves, in order.
WANTED = ["connect", "wanted", "established", "accepted", "original_dst", "redirect", "redirect"]


@pytest.fixture(scope="module")
def rig(shared):
    shared.attach()
    return shared


@pytest.fixture(scope="module")
def server(rig):
    with rig.hello.app.listen(PORT) as listener:
        yield listener


@pytest.fixture
def pins(rig):
    """The pins; no slot is taken before and after."""
    assert slots(Pins(rig.pins)) == ([], [])
    yield Pins(rig.pins)
    assert slots(Pins(rig.pins)) == ([], [])


def slots(pins):
    """Return the slots that programs write to, and those that hold a ring."""
    with pins.open_map("readers") as readers, pins.open_map("rings") as rings:
        layout = abi.layouts()["readers"]
        told = layout.unpack(bpf_maps.lookup(readers, bytes(4), layout.size))
        every = range(abi.constants()["READERS"])
        return (
            [slot for slot in every if told["open"] >> slot & 1],
            [slot for slot in every if bpf_maps.lookup(rings, u32(slot), 4) is not None],
        )


def request(rig, server, size=1000):
    """Send one request and its answer; return the port that the app dialled from."""
    client = rig.sleep.app.connect(rig.hello.ip, PORT)
    app, _ = server.accept()
    with client, app:
        port = client.getsockname()[1]
        for one, other in ((client, app), (app, client)):
            one.sendall(bytes(size))
            left = size
            while left:
                left -= len(other.recv(left))
    return port


def kinds_of(events, port):
    pair = next(event.pair for event in events if event.kind == "established" and event.port == port)
    return [event.kind for event in events if event.pair == pair]


def collected(reader, number=1):
    """Return what a reader is told until `number` connections of the app were closed by both ends."""
    events = []

    def complete():
        events.extend(reader.take(0.1))
        closed = [event.pair for event in events if event.kind == "closed"]
        return len(closed) >= 6 * number

    until(complete, "the trace has the ends of all connections")
    return events


def test_the_trace_tells_one_request(rig, server, pins):
    before = time.monotonic()
    with trace_ring.reading(pins, always=True) as reader:
        port = request(rig, server)
        events = collected(reader)
    told = kinds_of(events, port)
    assert told[: len(WANTED)] == WANTED
    first = next(event for event in events if event.kind == "connect")
    assert first.leg == "outbound"
    app = rig.sleep.app.pid
    assert (first.comm, first.pid) == (Path(f"/proc/{app}/comm").read_text().strip(), app)
    assert before < first.seconds < time.monotonic()
    sent = [event.size for event in events if event.kind == "redirect"]
    assert sum(sent) == 6 * 1000


def test_two_readers_are_both_told_everything(rig, server, pins):
    with trace_ring.reading(pins, always=True) as one, trace_ring.reading(pins, always=True) as other:
        assert slots(pins) == ([0, 1], [0, 1])
        request(rig, server)
        assert collected(one) == collected(other)
        with trace_ring.reading(pins, always=True) as third:
            request(rig, server)
            told = collected(third)
        assert collected(one) == collected(other) == told


def test_a_reader_without_debug_output_is_told_nothing_while_another_is(rig, server, pins):
    with trace_ring.reading(pins) as of_batch, trace_ring.reading(pins, always=True) as follower:
        assert rig.plane.debug is False
        request(rig, server)
        assert collected(follower)
        assert of_batch.take(0) == []
        rig.plane.debug = True
        try:
            request(rig, server)
            assert collected(of_batch) == collected(follower)
        finally:
            rig.plane.debug = False


def test_without_a_reader_nothing_is_written(rig, server, pins):
    rig.plane.debug = True
    try:
        request(rig, server)
        with trace_ring.reading(pins) as reader:
            assert reader.take(0.2) == []
    finally:
        rig.plane.debug = False


READ = """
import sys, time
from pathlib import Path
from merbridge_lab.dataplane import trace_ring
from merbridge_lab.dataplane.pins import Pins
with trace_ring.reading(Pins(Path(sys.argv[1])), always=True):
    print("reads", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def elsewhere(rig, *before):
    """Run a reader in another process."""
    argv = [*before, sys.executable, "-c", READ, str(rig.pins)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout.readline() == "reads\n"
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize("before", [(), ("unshare", "--pid", "--fork", "--kill-child")], ids=["here", "other_pids"])
def test_the_slot_of_a_killed_reader_is_free_for_the_next(rig, server, pins, before):
    with elsewhere(rig, *before) as killed, trace_ring.reading(pins, always=True) as mine:
        assert slots(pins) == ([0, 1], [0, 1]), "the other one runs: its slot is its own"
        killed.kill()
        killed.wait(10)
        until(lambda: trace_ring.sweep(pins) or slots(pins) == ([1], [1]), "its slot is free")
        with trace_ring.reading(pins, always=True) as following:
            assert slots(pins) == ([0, 1], [0, 1])
            request(rig, server)
            assert collected(mine) == collected(following)


def test_settling_frees_the_slot_of_a_killed_reader(rig, pins):
    with elsewhere(rig) as killed:
        killed.kill()
        killed.wait(10)
        assert slots(pins) == ([0], [0])
        rig.attach()
        assert slots(pins) == ([], [])


def test_what_finds_no_room_is_counted_and_said(rig, server, pins):
    with (
        trace_ring.reading(pins, always=True, size=4096) as slow,
        trace_ring.reading(pins, always=True) as quick,
    ):
        for _ in range(4):
            request(rig, server)
        events = collected(quick, 4)
        told = slow.take(0)
        lost = told[-1]
        assert lost.kind == "lost"
        assert 0 < lost.size == len(events) - (len(told) - 1)
        assert told[:-1] == events[: len(told) - 1], "what it was told is the beginning, without a gap"
        assert lost.sentence() == f"{lost.size} events were lost: they came faster than they were read"
        assert slow.take(0) == [], "it is said once"
        request(rig, server)
        assert slow.take(0)[0].kind == "connect"
        assert not any(event.kind == "lost" for event in events)


def test_there_are_no_more_readers_than_slots(pins):
    with contextlib.ExitStack() as stack:
        for _ in range(abi.constants()["READERS"]):
            stack.enter_context(trace_ring.reading(pins, size=4096))
        with pytest.raises(errors.LabError, match="the trace has 8 readers already"), trace_ring.reading(pins):
            raise AssertionError


def test_two_labs_are_apart(rig, server, pins):
    """They have the same addresses: what tells them apart is that each has programs and maps of its own."""
    with contextlib.closing(Rig(name="merlab-dp2")) as other:
        other.attach()
        with (
            other.hello.app.listen(PORT) as others,
            trace_ring.reading(pins, always=True) as mine,
            trace_ring.reading(Pins(other.pins), always=True) as theirs,
        ):
            port, their_port = request(rig, server, 100), request(other, others, 200)
            told, they = collected(mine), collected(theirs)
            assert {event.size for event in told if event.kind == "redirect"} == {100}
            assert {event.size for event in they if event.kind == "redirect"} == {200}
            assert kinds_of(told, port)[: len(WANTED)] == kinds_of(they, their_port)[: len(WANTED)] == WANTED
            assert not {event.pair for event in told} & {event.pair for event in they} - {0}


def test_following_goes_on_when_another_version_takes_over(rig, server, pins):
    told, ended = [], threading.Event()

    def read():
        for event in rig.plane.follow_trace():
            if event is not None:
                told.append(event)
            if ended.is_set():
                return

    reading = threading.Thread(target=read)
    reading.start()
    try:
        until(lambda: slots(pins)[0], "it reads")
        request(rig, server)
        until(lambda: sum(event.kind == "closed" for event in told) == 6, "it is told of the first request")
        with pins.open_map("readers") as before:
            known = bpf_syscall.map_info(before).id
        with pins.open_map("stamp") as stamp:
            bpf_maps.update(stamp, bytes(4), b"0.1+another".ljust(abi.layouts()["stamp"].size, b"\0"))
        rig.attach()
        with pins.open_map("readers") as after:
            assert bpf_syscall.map_info(after).id != known
        until(lambda: slots(pins)[0], "it reads the new maps")
        request(rig, server)
        until(lambda: sum(event.kind == "closed" for event in told) == 12, "it is told of the second request")
    finally:
        ended.set()
        reading.join(10)
    assert not reading.is_alive()


def test_nothing_is_left_of_the_slots(rig, pins):
    with trace_ring.reading(pins):
        pass
    rig.plane.detach(1.0)
    try:
        assert not rig.pins.exists()
    finally:
        rig.attach()


def test_a_reader_outlives_what_it_reads(rig, pins):
    with trace_ring.reading(pins) as reader:
        rig.plane.detach(1.0)
        assert reader.take(0) == []
    assert not rig.pins.exists(), "closing makes nothing"
    with pytest.raises(errors.LabError, match="no eBPF is attached"):
        next(rig.plane.follow_trace())
    rig.attach()
