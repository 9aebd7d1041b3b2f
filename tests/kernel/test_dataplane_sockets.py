"""What programs and other pods do with sockets, beyond plain connections; the names have the ids of the review.

Those that cannot be served as TCP would are left to TCP; those that lie about where they belong get nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import threading
import time
from dataclasses import replace

import pytest
from dataplane_build import changed
from dataplane_rig import NODE_IP, Rig, until
from test_dataplane_traffic import PORT, empty, grown, receive, rules_in, talk

from merbridge_lab.adapters import bpf_maps, bpf_syscall, routes
from merbridge_lab.dataplane import abi, garbage
from merbridge_lab.dataplane.istio_annotations import Interception
from merbridge_lab.dataplane.pins import Pins, u64
from merbridge_lab.istio_facts import INBOUND_PORT, OUTBOUND_PORT

pytestmark = pytest.mark.kernel

_libc = ctypes.CDLL(None, use_errno=True)
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
RECV_QUEUE, SEND_QUEUE = 1, 2


@pytest.fixture
def rig(shared):
    shared.attach()
    yield shared
    until(lambda: empty(shared), "the maps are empty again", 10)


@pytest.fixture(scope="module")
def server(shared):
    with shared.hello.app.listen(PORT) as listener:
        yield listener


def disconnect(sock: socket.socket) -> None:
    """End the connection of a socket and keep the socket: connect() to the address family AF_UNSPEC."""
    nowhere = struct.pack("=H14x", socket.AF_UNSPEC)
    assert _libc.connect(sock.fileno(), nowhere, len(nowhere)) == 0, os.strerror(ctypes.get_errno())


def readable(sock: socket.socket, size: int) -> None:
    def there() -> bool:
        with contextlib.suppress(BlockingIOError):
            return len(sock.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT)) == size
        return False

    until(there, f"{size} bytes have arrived")


# -- dials -----------------------------------------------------------------------------------------------------------


def test_a7_addresses_of_nobody_fail_as_without_ebpf(rig):
    for address in ("224.0.0.1", "255.255.255.255"):
        answers = [place.app.dial(address, PORT)[0] for place in (rig.sleep, rig.control_client)]
        assert answers[0] == answers[1] == errno.ENETUNREACH, address


def test_a7_a_destination_without_a_route_fails_as_without_ebpf(rig):
    """The kernel looks for a route before the rules are asked."""
    places = (rig.sleep, rig.control_client)

    def answers(ip: str) -> set[int]:
        return {place.app.dial(ip, PORT)[0] for place in places}

    def follow_routes() -> None:
        rig.sleep.interception = Interception(routes=tuple(routes.routed(rig.sleep.app.netns).items()))
        rig.attach()
        assert rig.problems() == []

    try:
        for place in places:
            place.app.sh("ip", "route", "add", "unreachable", "192.0.2.0/24")
            place.app.sh("ip", "route", "add", "prohibit", "198.51.100.0/25")
        follow_routes()
        before = rig.counters("sleep")
        assert answers("192.0.2.1") == {errno.EHOSTUNREACH}
        assert answers("198.51.100.1") == {errno.EACCES}
        assert grown(before, rig.counters("sleep")) == {"untouched_connects": 2}
        for place in places:
            place.app.sh("ip", "route", "add", f"{rig.hello.ip}/32", "via", NODE_IP)
            place.app.sh("ip", "route", "del", "default")
        follow_routes()
        assert answers("203.0.113.1") == {errno.ENETUNREACH}
        with rig.hello.app.listen(PORT) as listener, rig.sleep.app.connect(rig.hello.ip, PORT) as client:
            assert grown(before, rig.counters("sleep"))["outbound_connects"] == 1, "what has a route is served"
            server, _ = listener.accept()
            server.close()
            client.close()
    finally:
        for place in places:
            place.app.sh("ip", "route", "replace", "default", "via", NODE_IP)
            for route in (("unreachable", "192.0.2.0/24"), ("prohibit", "198.51.100.0/25"), (f"{rig.hello.ip}/32",)):
                place.app.sh("ip", "route", "del", *route)
        rig.sleep.interception = Interception()


def test_a8_a10_a_socket_that_is_dialled_again_gets_nothing_of_its_first_connection(rig, server):
    ids = set()
    client = rig.sleep.app.connect(rig.hello.ip, PORT)
    with client:
        for turn in range(4):
            app, _ = server.accept()
            before = rig.counters("sleep")
            with app:
                client.sendall(b"ask")
                assert receive(app, 3) == b"ask"
                app.sendall(b"unread of connection %d" % turn)
                readable(client, 22)
                ids |= {pair.id for pair in rig.plane.pairs() if pair.leg == "outbound"}
                moved = grown(before, rig.counters("sleep"))
                if turn:
                    assert "outbound_redirected_bytes" not in moved, "served on TCP"
                disconnect(client)
            client.connect((rig.hello.ip, PORT))
            with server.accept()[0] as app:
                client.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    client.recv(100)
                client.settimeout(10)
                app.sendall(b"of the next")
                assert client.recv(100) == b"of the next"
                ids |= {pair.id for pair in rig.plane.pairs() if pair.leg == "outbound"}
                disconnect(client)
            client.connect((rig.hello.ip, PORT))
        server.accept()[0].close()
    assert len(ids) == 8, "each has an id of its own"


def test_a9_each_destination_has_all_the_ports(rig, server):
    """As by the rules; not one after the other either, when none is used again before its time."""
    names = {"net.ipv4.ip_local_port_range": "20000 20019", "net.ipv4.tcp_tw_reuse": "0"}
    before = {name: rig.sleep.app.sh("sysctl", "-n", name).strip() for name in names}
    for name, value in names.items():
        rig.sleep.app.sh("sysctl", "-qw", f"{name}={value}")
    try:
        with rig.hello.app.listen(PORT + 1) as other, rig.node.listen(7000) as outside, contextlib.ExitStack() as stack:
            places = {(rig.hello.ip, PORT): server, (rig.hello.ip, PORT + 1): other, (NODE_IP, 7000): outside}
            for at, listener in places.items():
                for _ in range(19):  # Linux leaves one out if all are looked for by their parity
                    stack.enter_context(rig.sleep.app.connect(*at))
                    stack.enter_context(listener.accept()[0])
    finally:
        for name, value in before.items():
            rig.sleep.app.sh("sysctl", "-qw", f"{name}={value}")


# -- sending and receiving -------------------------------------------------------------------------------------------


def test_a11_sending_after_the_end_was_announced_fails(rig, server):
    with rig.sleep.app.connect(rig.hello.ip, PORT) as client, server.accept()[0] as app:
        client.sendall(b"before")
        assert receive(app, 6) == b"before"
        client.shutdown(socket.SHUT_WR)
        assert app.recv(1) == b""
        before = rig.counters("sleep")
        with pytest.raises(BrokenPipeError):
            client.send(b"after")
        assert grown(before, rig.counters("sleep"))["passed_ended"] == 1
        app.sendall(b"the other direction goes on")
        assert receive(client, 27) == b"the other direction goes on"


def test_a14_a_deferred_accept_costs_one_message(rig):
    with rig.hello.app.listen(PORT + 2) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
        before = rig.counters("hello")
        with rig.sleep.app.connect(rig.hello.ip, PORT + 2) as client:
            client.sendall(b"first")
            with listener.accept()[0] as app:
                assert app.recv(100) == b"first"
                assert grown(before, rig.counters("hello"))["passed_not_paired"] == 1
                for turn in range(5):
                    client.sendall(b"more%d" % turn)
                    readable(app, 5)
                    assert app.recv(100) == b"more%d" % turn
                assert grown(before, rig.counters("hello"))["inbound_redirected_bytes"] == 25


def test_a15_several_threads_write_while_a_direction_goes_over_to_tcp_and_comes_back(rig, server):
    """What each thread sends arrives whole and in its order."""
    size, count = 1_500_000, 4
    alphabets = [bytes(range(64 * each, 64 * each + 61)) for each in range(count)]
    before = rig.counters("sleep")
    with rig.sleep.app.connect(rig.hello.ip, PORT) as client, server.accept()[0] as app:
        app.settimeout(20), client.settimeout(20)

        def write(alphabet: bytes) -> None:
            data, at = (alphabet * (size // 61 + 1))[:size], 0
            for step in (1, 100, 70_000, 4096, 300_000) * 1000:
                if at >= size:
                    return
                client.sendall(data[at : at + step])
                at += step

        threads = [threading.Thread(target=write, args=(alphabet,)) for alphabet in alphabets]
        for thread in threads:
            thread.start()
        until(lambda: grown(before, rig.counters("sleep")).get("passed_receiver_full"), "nobody reads: it is on TCP")
        got = bytearray()
        while len(got) < size * count:
            got += app.recv(500_000)
            time.sleep(0.01)  # a slow reader, part of the test
        for thread in threads:
            thread.join()
        for alphabet in alphabets:
            own = bytes(got).translate(None, bytes(set(range(256)) - set(alphabet)))
            assert own == (alphabet * (size // 61 + 1))[:size]
        client.sendall(b"more")
        assert receive(app, 4) == b"more"


# -- entries that nobody takes ---------------------------------------------------------------------------------------


_OVERWRITE = (
    (0xBF, 0x16, 0, 0),  # r6 = r1
    (0x61, 0x12, 0, 0),  # r2 = op
    (0x15, 0x02, 1, 4),  # ACTIVE_ESTABLISHED
    (0x55, 0x02, 3, 5),  # or PASSIVE_ESTABLISHED:
    (0xBF, 0x61, 0, 0),
    (0xB7, 0x02, 0, 0),
    (0x85, 0x00, 0, 59),  # bpf_sock_ops_cb_flags_set(ctx, 0)
    (0xB7, 0x00, 0, 1),
    (0x95, 0x00, 0, 0),
)


def another_sockops() -> int:
    """Load a program that wants to be told of nothing, and says so for every connection."""
    code = b"".join(struct.pack("=BBhi", *each) for each in _OVERWRITE)
    room, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQIIQII16sII",
        bpf_syscall.PROG_SOCK_OPS, len(code) // 8, ctypes.addressof(room), ctypes.addressof(licence),
        0, 0, 0, 0, 0, b"overwrites", 0, 0,
    )  # fmt: skip
    return bpf_syscall.call(bpf_syscall.PROG_LOAD, attr, "load a program")[0]


def counts(rig: Rig) -> dict[int, int]:
    with Pins(rig.pins).open_map("live") as fd:
        return {key: struct.unpack("=q", bpf_maps.lookup(fd, u64(key), 8))[0] for key in
                (garbage.ALL, rig.sleep.cookie, rig.hello.cookie)}  # fmt: skip


def test_a17_what_another_program_hides_from_us_is_collected(rig, server):
    program, cgroup = another_sockops(), os.open(rig.mesh, os.O_RDONLY)
    link = bpf_syscall.link_create(program, cgroup, bpf_syscall.CGROUP_SOCK_OPS)
    try:
        for _ in range(5):
            talk(rig.sleep.app.connect(rig.hello.ip, PORT), server)
        until(lambda: not rig.sleep.app.sh("ss", "-Htn", "state", "established"), "they have ended")
        assert len(rig.plane.pairs()) == 15
        assert counts(rig) == {garbage.ALL: 15, rig.sleep.cookie: 10, rig.hello.cookie: 5}
    finally:
        for fd in (link, cgroup, program):
            os.close(fd)
    with rig.sleep.app.connect(rig.hello.ip, PORT) as client, server.accept()[0] as app:
        rig.attach()
        assert len(rig.plane.pairs()) == 3
        assert counts(rig) == {garbage.ALL: 3, rig.sleep.cookie: 2, rig.hello.cookie: 1}
        before = rig.counters("sleep")
        client.sendall(b"goes on")
        assert receive(app, 7) == b"goes on"
        assert grown(before, rig.counters("sleep"))["outbound_redirected_bytes"] == 7


def test_collecting_takes_nothing_from_connections_that_live(rig, server):
    stop, wrong, served = threading.Event(), [], []
    dialling = threading.Lock()

    def go_on() -> None:
        while not stop.is_set():
            try:
                with dialling:
                    client = rig.sleep.app.connect(rig.hello.ip, PORT)
                    app, _ = server.accept()
                with client, app:
                    for _ in range(3):
                        client.sendall(b"x" * 1000)
                        assert receive(app, 1000) == b"x" * 1000
                served.append(1)
            except (OSError, AssertionError) as failed:
                wrong.append(repr(failed))

    threads = [threading.Thread(target=go_on) for _ in range(4)]
    before = rig.plane.counters()
    for thread in threads:
        thread.start()
    try:
        pins, namespaces = Pins(rig.pins), {place.cookie: place.app.netns for place in (rig.sleep, rig.hello)}
        collected = []
        end = time.monotonic() + 60
        while (len(served) < 60 or len(collected) < 10) and not wrong and time.monotonic() < end:
            collected.append(garbage.collect(pins, namespaces))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(served) >= 60
    assert len(collected) >= 10
    assert {each.pairs for each in collected} == {0}
    moved = {name: grown(before[name], rig.counters(name)) for name in ("sleep", "hello")}
    assert not [name for pod in moved.values() for name in pod if name.startswith("passed_not_paired")]
    until(lambda: set(counts(rig).values()) == {0}, "the counts are as if nobody had looked")


def test_dials_that_fail_are_not_counted_for_good(rig):
    drop = ["INPUT", "-p", "tcp", "--dport", str(OUTBOUND_PORT), "--syn", "-j", "DROP"]
    rig.sleep.app.sh("iptables-nft", "-I", *drop)
    try:
        waiting = [rig.sleep.app.ask(op="begin", to=[rig.hello.ip, PORT])[1] for _ in range(3)]
        assert counts(rig)[rig.sleep.cookie] == 3
        rig.attach()
        assert counts(rig)[rig.sleep.cookie] == counts(rig)[garbage.ALL] == 3, "they may still succeed"
        for sock in waiting:
            sock.close()
        until(lambda: set(counts(rig).values()) == {0}, "none is counted")
    finally:
        rig.sleep.app.sh("iptables-nft", "-D", *drop)


# -- other pods ------------------------------------------------------------------------------------------------------


def test_c1_a_connection_that_dnat_brings_to_another_sidecar_is_not_believed(rig):
    away = f"OUTPUT -p tcp --dport {OUTBOUND_PORT} -j DNAT --to-destination {rig.hello.ip}:{INBOUND_PORT}"
    rig.sleep.app.sh("iptables-nft", "-t", "nat", "-A", *away.split())
    try:
        before, seen = rig.counters("hello"), len(rig.hello.log())
        with rig.sleep.app.connect(NODE_IP, 7000):
            entry = until(lambda: rig.hello.log()[seen:], "hello's sidecar accepted it")[0]
        assert entry.get("original") != [NODE_IP, 7000], entry
        assert grown(before, rig.counters("hello"))["refused_handovers"] == 1
    finally:
        rig.sleep.app.sh("iptables-nft", "-t", "nat", "-F")
        rig.sleep.app.sh("iptables-nft", "-t", "nat", "-X")


def repair(sock: socket.socket, numbers: tuple[int, int] | None = None) -> tuple[int, int]:
    """Read the next sequence numbers of a connection, sent and received; or choose them before there is one."""
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    told = []
    for at, queue in enumerate((SEND_QUEUE, RECV_QUEUE)):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        if numbers:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, struct.pack("=I", numbers[at]))
        told.append(struct.unpack("=I", sock.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, 4))[0])
    if not numbers:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, -1)
    return told[0], told[1]


def test_c1_a_connection_that_was_made_up_with_the_numbers_of_another_is_not_believed(rig):
    """By TCP_REPAIR, which CAP_NET_ADMIN allows: a socket is connected with chosen numbers, and no packet."""
    hold = f"OUTPUT -p tcp -d {rig.hello.ip} --tcp-flags SYN,ACK,RST ACK -j DROP".split()
    rig.node.sh("iptables-nft", "-I", *hold)
    held = True
    try:
        victim = rig.node.connect(rig.hello.ip, INBOUND_PORT)
        numbers = repair(victim)
        forged = rig.sleep.app.ask(op="socket")[1]
        repair(forged, numbers)
        forged.connect((NODE_IP, 7000))
        layout = abi.layouts()["handshake"]
        with Pins(rig.pins).open_map("pairs") as fd:
            held_there = garbage.connections(fd)
        key = layout.pack(from_dialling=numbers[0], from_accepting=numbers[1])
        assert held_there[key]["leg"] == abi.legs().index("outbound"), "the entry is there"
        before, seen = rig.counters("hello"), len(rig.hello.log())
        rig.node.sh("iptables-nft", "-D", *hold)
        held = False
        victim.sendall(b"x")
        entry = until(lambda: rig.hello.log()[seen:], "hello's sidecar accepted it")[0]
        assert entry.get("original") != [NODE_IP, 7000], entry
        assert grown(before, rig.counters("hello"))["refused_handovers"] == 1
        victim.close(), forged.close()
    finally:
        if held:
            rig.node.sh("iptables-nft", "-D", *hold)


def test_c3_an_address_that_another_pod_has_at_once_leads_to_that_pod(rig):
    """First nobody has told the dataplane; then it serves the new pod under the old address."""
    address, new = rig.hello.ip, rig.control_client
    new.app.sh("ip", "address", "add", f"{address}/32", "dev", "eth0")
    rig.node.sh("ip", "route", "replace", f"{address}/32", "dev", f"v{new.name}")
    seen = len(rig.hello.log())
    try:
        with new.app.listen(PORT) as listener:
            with rules_in((rig.sleep, new)):
                before = rig.plane.counters()
                peer = talk(rig.sleep.app.connect(address, PORT), listener)
                assert peer[0] == "127.0.0.6", "its own sidecar delivers"
                assert new.log()[-1]["original"] == [address, PORT]
                moved = grown(before["sleep"], rig.counters("sleep"))
                assert moved["mesh_connects"] == 1
                assert "mesh_redirected_bytes" not in moved
            rig.plane.attach([rig.sleep.endpoint, replace(new.endpoint, ip=address)])
            known = len(new.log())
            with rig.node.connect(address, PORT):
                # Its cgroup is not below ours, so its sidecar is not told more than that.
                entry = until(lambda: new.log()[known:], "it is steered to the new pod's sidecar")[0]
                assert (entry["inbound"], entry["local"]) == (True, [address, PORT])
        assert rig.hello.log()[seen:] == [], "nothing came to the pod that had it before"
    finally:
        rig.node.sh("ip", "route", "replace", f"{address}/32", "dev", "vhello")
        new.app.sh("ip", "address", "del", f"{address}/32", "dev", "eth0")
        rig.attach()


# -- conntrack -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def built(rig: Rig, folder, *changes):
    rig.plane.detach(2.0)
    with changed(folder, *changes):
        rig.attach()
        yield
        rig.plane.detach(2.0)
    rig.attach()


@contextlib.contextmanager
def redirected(rig: Rig, server: socket.socket):
    """Make a connection of which not one message goes by TCP.

    If the first one does, as the other end was slower, those to a reader that sleeps in recv() go on to.
    """
    for _ in range(50):
        with rig.sleep.app.connect(rig.hello.ip, PORT) as client, server.accept()[0] as app:
            client.settimeout(8), app.settimeout(8)
            until(lambda: len(rig.plane.pairs()) == 3, "all legs are there")
            before = rig.plane.counters()
            for _ in range(3):
                exchange(client, app)
            moved = {pod: grown(before[pod], now) for pod, now in rig.plane.counters().items()}
            if not [name for counts in moved.values() for name in counts if name.startswith("passed")]:
                yield client, app
                return
        until(lambda: empty(rig), "it has ended")
    raise AssertionError("of 50 connections not one was redirected from its first message on")


def exchange(client: socket.socket, app: socket.socket) -> None:
    for one, other in ((client, app), (app, client)):
        one.sendall(b"message")
        assert receive(other, 7) == b"message"


def talks_until_conntrack_forgets(rig: Rig, server: socket.socket, seconds: float) -> None:
    """Exchange messages that no packet carries, for longer than conntrack remembers; then go over to TCP, and end."""
    with redirected(rig, server) as (client, app):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            exchange(client, app)
            time.sleep(0.1)  # as time passes, and nothing else, entries expire
        for one, other in ((app, client), (client, app)):
            before = rig.plane.counters()
            data = os.urandom(8_000_000)
            sender = threading.Thread(target=one.sendall, args=(data,))
            sender.start()
            until(
                lambda before=before: any(
                    grown(before[pod], now).get("passed_receiver_full") for pod, now in rig.plane.counters().items()
                ),
                "a receiver that does not read is full",
            )
            assert receive(other, len(data)) == data
            sender.join()
        client.shutdown(socket.SHUT_WR)
        assert app.recv(1) == b""
        app.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


@contextlib.contextmanager
def forgetful(rig: Rig):
    """Istio's rules, and connection tracking that forgets a connection after five seconds without a packet."""
    with rules_in((rig.sleep, rig.hello)):
        name = "net.netfilter.nf_conntrack_tcp_timeout_established"
        for place in (rig.sleep, rig.hello):
            place.app.sh("sysctl", "-qw", f"{name}=5")
        yield
        for place in (rig.sleep, rig.hello):
            place.app.sh("sysctl", "-qw", f"{name}=432000")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "refreshed",
    [True, pytest.param(False, marks=pytest.mark.soak)],
    ids=["refreshed", "without the packets it is reset"],
)
def test_conntrack_does_not_forget_a_connection_that_is_redirected(rig, server, tmp_path, refreshed):
    interval = "1000000000" if refreshed else "900000000000"
    with built(rig, tmp_path / "bpf", ("abi.h", "REFRESH 60000000000", f"REFRESH {interval}")), forgetful(rig):
        if refreshed:
            before = rig.counters("sleep")
            talks_until_conntrack_forgets(rig, server, 8)
            assert grown(before, rig.counters("sleep"))["passed_refresh"] >= 2
        else:
            for _ in range(4):  # on a loaded machine a message may go by TCP in between, and refresh the entry
                try:
                    talks_until_conntrack_forgets(rig, server, 8)
                except (OSError, AssertionError):
                    return
            pytest.fail("no connection was reset")
