"""The two-way switch between redirecting and TCP: each of its gates is needed, as bytes change places without it.

Both ends of the connection are sockets of this process, played by nobody else: one between sidecars.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from dataplane_build import changed
from dataplane_rig import Rig, until
from test_dataplane_failures import played_sidecar
from test_dataplane_traffic import PORT, grown, receive

from merbridge_lab.dataplane.pins import Pins
from merbridge_lab.istio_facts import INBOUND_PORT

pytestmark = pytest.mark.kernel

UNREAD = ("sk_msg.c", "if (written != copied)", "if (0)")
ASLEEP = ("sk_msg.c", "if (reader_asleep(kernel, sk))", "if (0)")
FULL = 4 << 20


@pytest.fixture
def ends(shared, tmp_path, request):
    """A connection between two sidecars, under the dataplane without the gate that the test names; None is with all."""
    shared.plane.detach(2.0)
    with changed(tmp_path / "bpf", *([request.param] if request.param else [])):
        shared.attach()
        with played_sidecar(shared) as sidecar, sidecar.listen(INBOUND_PORT) as listener:
            sender = shared.sleep.sidecar.connect(shared.hello.ip, PORT)
            receiver = listener.accept()[0]
            with sender, receiver:
                sender.settimeout(10), receiver.settimeout(10)
                until(lambda: [pair for pair in shared.plane.pairs() if all(pair.pods)], "they are a pair")
                yield shared, sender, receiver, listener
        shared.plane.detach(2.0)


@pytest.mark.parametrize("ends", [None, UNREAD], ids=["all gates", "without"], indirect=True)
def test_what_tcp_carries_is_not_overtaken(ends, request):
    """The receiver is full, so the rest goes by TCP; it has read what was redirected, and not yet what TCP brought."""
    rig, sender, receiver, _ = ends
    before = rig.counters("sleep")
    sender.setblocking(False)
    sent = 0
    while not grown(before, rig.counters("sleep")).get("passed_receiver_full"):
        sent += sender.send(b"x" * 65536)
        assert sent < FULL
    redirected = grown(before, rig.counters("sleep"))["mesh_redirected_bytes"]
    assert redirected < sent
    assert len(receive(receiver, redirected)) == redirected
    sender.setblocking(True)
    sender.sendall(b"LATER")
    rest = receive(receiver, sent - redirected + 5)
    is_in_order = rest.endswith(b"LATER") and rest.count(b"LATER") == 1
    assert is_in_order is ("without" not in request.node.name), rest[:20]


@pytest.mark.parametrize("ends", [None, ASLEEP], ids=["all gates", "without"], indirect=True)
def test_a_reader_that_sleeps_for_tcp_is_not_passed_by(ends, request):
    """In recv() with MSG_WAITALL, after some bytes by TCP: it looks at TCP's queue alone until it has all."""
    rig, sender, receiver, _ = ends
    pins, got = Pins(rig.pins), []
    receiver.settimeout(None)
    pins.configure(redirect=0)
    sender.sendall(b"begin")
    until(lambda: len(receiver.recv(5, socket.MSG_PEEK)) == 5, "TCP has brought it")
    reader = threading.Thread(target=lambda: got.append(receiver.recv(15, socket.MSG_WAITALL)))
    reader.start()
    until(lambda: _is_asleep(reader.native_id), "the reader sleeps in recv()")
    pins.configure(redirect=1)
    before = rig.counters("sleep")
    sender.sendall(b"FIRST")
    moved = grown(before, rig.counters("sleep"))
    assert ("passed_reader_asleep" in moved) is ("without" not in request.node.name), moved
    pins.configure(redirect=0)
    sender.sendall(b"later")
    sender.sendall(b"later")
    reader.join(10)
    sender.shutdown(socket.SHUT_WR)
    rest = b""
    while part := receiver.recv(100):
        rest += part
    assert (got[0] + rest == b"beginFIRSTlaterlater") is ("without" not in request.node.name), (got, rest)


def _is_asleep(thread: int) -> bool:
    with open(f"/proc/self/task/{thread}/syscall") as file:  # noqa: PTH123
        return file.read().split()[0] in ("45", "207")  # recvfrom on x86_64, aarch64


class EdgeReader:
    """Reads as Envoy does: waits for edges, then reads until there is nothing more. Nobody wakes it a second time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.got, self.ended = sock, 0, False
        sock.setblocking(False)
        self.poll = select.epoll()
        self.poll.register(sock, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)

    def run(self, patience: float) -> None:
        while not self.ended and self.poll.poll(patience):
            with contextlib.suppress(BlockingIOError):
                while data := self.sock.recv(65536):
                    self.got += len(data)
                self.ended = True
        self.poll.close()


def one_end_after_another(rig: Rig, listener: socket.socket, dialling: threading.Lock, seed: int) -> str:
    """Send a random amount in random pieces, then the end; return what the reader missed."""
    rng = random.Random(seed)  # noqa: S311
    with dialling:
        sender = rig.sleep.sidecar.connect(rig.hello.ip, PORT)
        receiver = listener.accept()[0]
    with sender, receiver:
        if rng.random() < 0.5:
            sender, receiver = receiver, sender
        sender.settimeout(20)
        reader = EdgeReader(receiver)
        thread = threading.Thread(target=reader.run, args=(8,))
        thread.start()
        size = sent = round(3_000_000 ** rng.random())
        while sent:
            piece = min(sent, rng.choice((1, 100, 4096, 70_000, 500_000)))
            sender.sendall(bytes(piece))
            sent -= piece
        sender.shutdown(socket.SHUT_WR)
        thread.join()
    return "" if (reader.got, reader.ended) == (size, True) else f"{seed}: {reader.got} of {size}, end: {reader.ended}"


@pytest.mark.parametrize("ends", [None], ids=["all gates"], indirect=True)
@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.soak)])
def test_an_edge_triggered_reader_is_told_of_every_end(ends, count):
    """The end comes by TCP, after bytes that came by the other way: no edge is lost between the two."""
    rig, _, _, listener = ends
    before = rig.counters("sleep")
    dialling = threading.Lock()
    with ThreadPoolExecutor(8) as pool:
        missed = [each for each in pool.map(lambda seed: one_end_after_another(rig, listener, dialling, seed),
                                            range(count)) if each]  # fmt: skip
    assert missed == []
    moved = grown(before, rig.counters("sleep"))
    assert moved["mesh_redirected_messages"] > count // 4
