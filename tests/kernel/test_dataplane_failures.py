"""What happens where a map is full, an entry missing or a helper refuses: a test for each row of docs/failures.md.

The rule is: when in doubt, TCP; when a map misses, Istio's rules. So each connection is looked at with the rules in
place, where it must reach the app through both sidecars whatever fails, and with the rules flushed where that differs.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import socket
import struct

import pytest
from dataplane_build import changed, sized
from dataplane_rig import Agent, Rig, until
from test_dataplane_traffic import PORT, empty, grown, receive, rules_in, talk

from merbridge_lab.adapters import bpf_maps, bpf_syscall
from merbridge_lab.dataplane import abi, garbage, sockhash
from merbridge_lab.dataplane.inbound_listener import inbound_listeners
from merbridge_lab.dataplane.pins import Pins, u32, u64
from merbridge_lab.errors import LabError
from merbridge_lab.istio_facts import INBOUND_PORT, OUTBOUND_PORT, SIDECAR_UID

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def server(shared):
    with shared.hello.app.listen(PORT) as listener:
        yield listener


@pytest.fixture
def rig(shared):
    """The rig with the dataplane attached as it is."""
    shared.attach()
    yield shared
    shared.attach()
    assert shared.problems() == []


@pytest.fixture
def build(shared, tmp_path):
    """Attach a changed dataplane, until the end of the test."""
    with contextlib.ExitStack() as stack:

        def attach(*changes) -> Rig:
            shared.plane.detach(2.0)
            stack.enter_context(changed(tmp_path / "bpf", *changes))
            stack.callback(shared.plane.detach, 2.0)
            shared.attach()
            return shared

        yield attach


@contextlib.contextmanager
def ruled(rig: Rig):
    with rules_in((rig.sleep, rig.hello)):
        yield


def moved(rig: Rig, before) -> tuple[dict[str, int], dict[str, int]]:
    after = rig.plane.counters()
    return grown(before["sleep"], after["sleep"]), grown(before["hello"], after["hello"])


def call(rig: Rig, server: socket.socket) -> tuple[dict[str, int], dict[str, int]]:
    """Make one connection through both sidecars, and return what was counted in the client's pod and the server's."""
    before = rig.plane.counters()
    assert talk(rig.sleep.app.connect(rig.hello.ip, PORT), server, (1000, 200_000))[0] == "127.0.0.6"
    for place, inbound in ((rig.sleep, False), (rig.hello, True)):
        entry = place.log()[-1]
        assert (entry["inbound"], entry["original"]) == (inbound, [rig.hello.ip, PORT])
    return moved(rig, before)


def table(rig: Rig, name: str):
    return Pins(rig.pins).open_map(name)


@contextlib.contextmanager
def without(rig: Rig, name: str, key: bytes, size: int):
    """Take an entry out of a map for a moment."""
    with table(rig, name) as fd:
        value = bpf_maps.lookup(fd, key, size)
        assert value
        assert bpf_maps.delete(fd, key)
        try:
            yield
        finally:
            bpf_maps.update(fd, key, value)


def facts(rig: Rig, **values: int) -> None:
    """Change what the programs are told about the kernel."""
    layout = abi.layouts()["kernel"]
    with table(rig, "kernel") as fd:
        now = layout.unpack(bpf_maps.lookup(fd, bytes(4), layout.size))
        bpf_maps.update(fd, bytes(4), layout.pack(**now | values))


def live(rig: Rig, cookie: int) -> int:
    with table(rig, "live") as fd:
        return struct.unpack("=q", bpf_maps.lookup(fd, u64(cookie), 8))[0]


@contextlib.contextmanager
def no_storage(place):
    """Let no socket of a network namespace have storage of BPF programs: the kernel refuses what is beyond."""
    name = "net.core.optmem_max"
    before = place.app.sh("sysctl", "-n", name).strip()
    place.app.sh("sysctl", "-qw", f"{name}=0")
    try:
        yield
    finally:
        place.app.sh("sysctl", "-qw", f"{name}={before}")


# -- connect() -------------------------------------------------------------------------------------------------------


def test_a_pod_that_is_not_in_pods_is_left_to_the_rules(rig, server):
    size = abi.layouts()["pod"].size
    with ruled(rig), without(rig, "pods", u64(rig.sleep.cookie), size):
        # Counters are listed by pod, so the client's are read when it is back.
        assert talk(rig.sleep.app.connect(rig.hello.ip, PORT), server)[0] == "127.0.0.6"
        assert rig.sleep.redirected_packets() == 1


def test_a_pod_without_an_address_in_pod_ips_is_reached_by_tcp_and_the_rules(rig, server):
    with without(rig, "pod_ips", u32(rig.hello.endpoint.ip4), 8):
        with ruled(rig):
            sleep, hello = call(rig, server)
            assert "mesh_connects" not in sleep
            assert "accepted_mesh" not in hello
        with rig.node.connect(rig.hello.ip, PORT) as client, server.accept()[0] as app:
            assert app.getpeername() == client.getsockname(), "with the rules flushed too, past the sidecar"


def test_a_pod_without_a_count_is_left_to_the_rules(rig, server):
    with ruled(rig), without(rig, "live", u64(rig.sleep.cookie), 8):
        assert any("have no count" in each for each in rig.problems())
        sleep, _ = call(rig, server)
        assert sleep["left_to_rules"] == 2, "the app's connection, and its sidecar's"
        assert rig.sleep.redirected_packets() == 1


def test_without_the_count_of_all_everything_is_left_to_the_rules_until_it_is_made_anew(rig, server):
    with table(rig, "live") as fd:
        assert bpf_maps.delete(fd, u64(garbage.ALL))
    with ruled(rig):
        sleep, hello = call(rig, server)
        assert (sleep["left_to_rules"], hello["left_to_rules"]) == (2, 1)
    assert len([each for each in rig.problems() if "have no count" in each]) == 2
    rig.attach()
    assert rig.problems() == []
    assert call(rig, server)[0]["outbound_connects"] == 1


def test_a_pod_without_counters_is_served(rig, server):
    size = (abi.layouts()["counters"].size + 7) // 8 * 8 * bpf_maps.possible_cpus()
    with without(rig, "counters", u64(rig.sleep.cookie), size):
        before = rig.counters("hello")
        assert talk(rig.sleep.app.connect(rig.hello.ip, PORT), server)[0] == "127.0.0.6"
        assert grown(before, rig.counters("hello"))["mesh_redirected_bytes"] == 1000


def test_a_pod_beyond_its_quota_is_left_to_the_rules_and_others_are_served(rig, server):
    quota = Pins(rig.pins).kernel()["quota"]
    until(lambda: live(rig, rig.sleep.cookie) == 0, "no connection is left")
    with ruled(rig):
        facts(rig, quota=2)
        try:
            with rig.sleep.app.connect(rig.hello.ip, PORT) as first, server.accept()[0] as app:
                assert live(rig, rig.sleep.cookie) == 2
                before = rig.sleep.redirected_packets()
                sleep, hello = call(rig, server)
                assert sleep["left_to_rules"] == 2
                assert hello["accepted_inbound"] == 1, "the other pod has its own count"
                assert rig.sleep.redirected_packets() == before + 1
                first.sendall(b"goes on")
                assert receive(app, 7) == b"goes on"
        finally:
            facts(rig, quota=quota)


def test_pairs_are_full_the_rules_serve_what_has_no_room(build, server):
    rig = build(("abi.h", "MAX_PAIRS     262144", "MAX_PAIRS     8"), ("abi.h", "SPARE 1024", "SPARE 0"))
    with ruled(rig), contextlib.ExitStack() as stack:
        before = rig.plane.counters()
        for _ in range(12):
            client = stack.enter_context(rig.sleep.app.connect(rig.hello.ip, PORT))
            app = stack.enter_context(server.accept()[0])
            assert app.getpeername()[0] == "127.0.0.6"
            client.sendall(b"there")
            assert receive(app, 5) == b"there"
        assert len(rig.plane.pairs()) == 8 == live(rig, garbage.ALL)
        sleep, hello = moved(rig, before)
        assert sleep["left_to_rules"] + hello["left_to_rules"] == 36 - 8
        assert "map_full" not in sleep | hello
        assert rig.sleep.redirected_packets() >= 9
    until(lambda: live(rig, garbage.ALL) == 0, "all room is free again")


#: The kernel refuses an entry although there is room: it has no memory. Here the room is less than what is promised.
NO_MEMORY = ("connect.c", "*all < MAX_PAIRS - SPARE", "*all < 1000")


def test_an_entry_in_pairs_is_refused_to_a_sidecar_that_dials(build, server):
    rig = build(NO_MEMORY, sized("pairs", 1))
    with ruled(rig):
        sleep, hello = call(rig, server)
        assert (sleep["map_full"], hello["map_full"]) == (1, 1), "its connection and the server's inbound one"
        assert "accepted_mesh" not in hello
        assert sleep["accepted_outbound"] == 1
    until(lambda: live(rig, garbage.ALL) == 0, "refused connections are counted no more")


def test_an_entry_in_pairs_is_refused_to_an_app_that_dials_its_connection_is_closed(build, server):
    """The one that fails closed: the sidecar was dialled, and cannot learn for whom."""
    rig = build(NO_MEMORY, sized("pairs", 1))
    with ruled(rig), rig.sleep.app.connect(rig.hello.ip, PORT), server.accept()[0]:
        before = rig.plane.counters()
        with rig.sleep.app.connect(rig.hello.ip, PORT) as client:
            client.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        assert moved(rig, before)[0]["map_full"] == 1


def test_storage_is_refused_to_a_socket_that_dials_the_rules_serve_it(rig, server):
    with ruled(rig), no_storage(rig.sleep):
        sleep, _ = call(rig, server)
        assert sleep["map_full"] == 2
        assert "accepted_outbound" not in sleep
        assert rig.sleep.redirected_packets() == 1


# -- the other end ---------------------------------------------------------------------------------------------------


def test_storage_is_refused_to_a_socket_that_is_accepted_tcp_serves_it(rig, server):
    with ruled(rig), no_storage(rig.hello):
        sleep, hello = call(rig, server)
        assert hello["map_full"] == 2, "accepted from the other sidecar, and dialled to the app"
        assert sleep["mesh_connects"] == 1
        assert "mesh_redirected_bytes" not in sleep
    until(lambda: empty(rig), "the maps are empty again")


def test_storage_is_refused_to_a_socket_that_is_accepted_from_an_app_it_is_closed(rig):
    """Fails closed, like a full map: between connect() and the sidecar's accept() the storage has run out."""
    drop = ["INPUT", "-p", "tcp", "--dport", str(OUTBOUND_PORT), "--syn", "-j", "DROP"]
    rig.sleep.app.sh("iptables-nft", "-I", *drop)
    client = rig.sleep.app.ask(op="begin", to=[rig.hello.ip, PORT])[1]
    with client, no_storage(rig.sleep):
        rig.sleep.app.sh("iptables-nft", "-D", *drop)
        client.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        assert "error" in rig.sleep.log()[-1]
    until(lambda: live(rig, rig.sleep.cookie) == 0, "nothing is left of it")


def test_peers_are_full_tcp_serves(build, server):
    rig = build(sized("peers", 1))
    sleep, hello = call(rig, server)
    assert sleep["map_full"] + hello["map_full"] == 5, "six sockets"
    assert sleep["accepted_outbound"] == hello["accepted_mesh"] == hello["accepted_inbound"] == 1
    assert sleep["passed_redirect_failed"] >= 1, "the one that is in finds no other end"
    assert not [name for name in (*sleep, *hello) if name.endswith("redirected_bytes")]


def first_key(rig: Rig, leg: str) -> bytes:
    with table(rig, "pairs") as fd:
        found = garbage.connections(fd)
    return next(key for key, pair in found.items() if abi.legs()[pair["leg"]] == leg)


def test_the_other_end_has_left_peers_tcp_goes_on(rig, server):
    with rig.sleep.app.connect(rig.hello.ip, PORT) as client, server.accept()[0] as app:
        client.sendall(b"one")
        assert receive(app, 3) == b"one"
        before = rig.plane.counters()
        with table(rig, "peers") as fd:
            assert bpf_maps.delete(fd, sockhash.end_key(first_key(rig, "inbound"), 1))
        client.sendall(b"two")
        assert receive(app, 3) == b"two"
        app.sendall(b"three")
        assert receive(client, 5) == b"three"
        assert moved(rig, before)[1]["passed_redirect_failed"] >= 1
        client.shutdown(socket.SHUT_WR)
        assert app.recv(1) == b""


def test_a_pair_is_gone_tcp_goes_on(rig, server):
    with rig.sleep.app.connect(rig.hello.ip, PORT) as client, server.accept()[0] as app:
        client.sendall(b"one")
        assert receive(app, 3) == b"one"
        before = rig.plane.counters()
        with table(rig, "pairs") as fd:
            for key in garbage.connections(fd):
                assert bpf_maps.delete(fd, key)
        client.sendall(bytes(300_000))
        assert receive(app, 300_000) == bytes(300_000)
        app.sendall(b"three")
        assert receive(client, 5) == b"three"
        sleep, hello = moved(rig, before)
        assert sleep["passed_not_paired"] >= 1 <= hello["passed_not_paired"]
        assert not [name for name in (*sleep, *hello) if name.endswith("redirected_bytes")]
    until(lambda: not rig.sleep.app.sh("ss", "-Htn", "state", "established"), "it has ended")
    assert live(rig, garbage.ALL) == 3, "nobody could count them off"
    rig.attach()
    assert live(rig, garbage.ALL) == live(rig, rig.sleep.cookie) == live(rig, rig.hello.cookie) == 0


def test_redirecting_is_off_tcp_serves(rig, server):
    Pins(rig.pins).configure(redirect=0)
    sleep, hello = call(rig, server)
    assert sleep["passed_redirect_off"] >= 2 <= hello["passed_redirect_off"]
    assert not [name for name in (*sleep, *hello) if name.endswith("redirected_bytes")]


# -- listeners -------------------------------------------------------------------------------------------------------


def clear_listeners(rig: Rig, cookie: int) -> None:
    with table(rig, "listeners") as fd:
        for key in sockhash.listener_keys(fd, cookie):
            bpf_maps.delete(fd, key)


def test_no_listener_is_known_never_past_the_sidecar(rig, server):
    clear_listeners(rig, rig.hello.cookie)
    with ruled(rig):
        sleep, hello = call(rig, server)
        assert sleep["mesh_redirected_bytes"] == hello["mesh_redirected_bytes"], "the rules bring it, eBPF moves it"
    for place in (rig.node, rig.sleep.sidecar):
        assert place.dial(rig.hello.ip, PORT)[0] == errno.ECONNREFUSED, "as by the rules where no sidecar listens"


def test_listeners_are_full_attaching_says_so(build):
    with pytest.raises(LabError, match="cannot be attached"):
        build(sized("listeners", 1))


@pytest.mark.parametrize("name", ["pods", "pod_ips", "counters", "live"])
def test_there_is_room_for_one_pod_attaching_says_so(build, name):
    with pytest.raises(LabError, match="cannot be attached"):
        build(sized(name, 2 if name == "live" else 1))  # one of `live` is for all pods


def test_a6_the_kernel_refuses_a_listener_the_next_one_is_taken(rig, server):
    """One that takes no IPv4: registered by mistake, it must not open the way past the sidecar."""
    only = rig.hello.sidecar.listen(7106, at="::", v6=True, v6only=True)
    with only, table(rig, "listeners") as fd:
        keys = [sockhash.listener_key(rig.hello.cookie, slot) for slot in (0, 1)]
        # The sidecar's own one moves to the second place.
        (number,) = [bpf_maps.lookup(fd, key, 8) for key in sockhash.listener_keys(fd, rig.hello.cookie)]
        with contextlib.closing(inbound_listeners(rig.hello.sidecar.pid, rig.hello.cookie)) as found:
            own, _ = next(found)
            bpf_maps.update(fd, keys[0], u64(only.fileno()))
            assert rig.node.dial(rig.hello.ip, PORT)[0] == errno.ECONNREFUSED
            bpf_maps.update(fd, keys[1], u64(own))
        assert bpf_maps.lookup(fd, keys[1], 8) == number
        assert talk(rig.node.connect(rig.hello.ip, PORT), server)[0] == "127.0.0.6"


@contextlib.contextmanager
def played_sidecar(rig: Rig):
    """Replace hello's sidecar by an agent that does nothing by itself."""
    rig.hello.sidecar.end()
    rig.hello.sidecar = Agent(rig.hello.cgroup / "sidecar", str(rig.hello.app.netns), SIDECAR_UID)
    try:
        yield rig.hello.sidecar
    finally:
        rig.hello.sidecar.end()
        rig.hello.start_sidecar()


def registered(rig: Rig) -> int:
    with table(rig, "listeners") as fd:
        return len(sockhash.listener_keys(fd, rig.hello.cookie))


def reaches(rig: Rig, listener: socket.socket) -> None:
    with rig.node.connect(rig.hello.ip, PORT) as client, listener.accept()[0] as sock:
        assert sock.getpeername()[1] == client.getsockname()[1]


@pytest.mark.usefixtures("server")
def test_a6_a_listener_for_ipv6_alone_is_not_registered(rig):
    with played_sidecar(rig) as sidecar:
        with sidecar.listen(INBOUND_PORT, at="::", v6=True, v6only=True):
            assert registered(rig) == 0
            assert rig.node.dial(rig.hello.ip, PORT)[0] == errno.ECONNREFUSED
        with sidecar.listen(INBOUND_PORT, at="::", v6=True) as both:
            assert registered(rig) == 1
            reaches(rig, both)


@pytest.mark.usefixtures("server")
def test_a12_each_of_several_listeners_may_close(rig):
    with played_sidecar(rig) as sidecar:
        for last in range(3):
            listeners = [sidecar.listen(INBOUND_PORT, reuseport=True) for _ in range(3)]
            assert registered(rig) == 3
            for each, listener in enumerate(listeners):
                if each != last:
                    listener.close()
            until(lambda: registered(rig) == 1, "the closed ones have left")
            with listeners[last]:
                reaches(rig, listeners[last])


@pytest.mark.usefixtures("server")
def test_c5_another_users_listener_is_not_taken_for_the_sidecars(rig):
    with played_sidecar(rig), rig.hello.app.listen(INBOUND_PORT):
        assert registered(rig) == 0
        assert rig.node.dial(rig.hello.ip, PORT)[0] == errno.ECONNREFUSED


def test_c5_another_users_listener_learns_no_destination(rig):
    """On 15001, while the sidecar is down: the bytes reach it, as by the rules, but not what they were meant for."""
    before = rig.counters("sleep")["refused_handovers"]
    rig.sleep.sidecar.end()
    try:
        with rig.sleep.app.listen(OUTBOUND_PORT) as squatter, rig.sleep.app.connect(rig.hello.ip, PORT):
            with squatter.accept()[0] as sock, pytest.raises(OSError, match="No such file"):
                sock.getsockopt(socket.SOL_IP, 80, 16)
            assert rig.counters("sleep")["refused_handovers"] == before + 1
    finally:
        rig.sleep.start_sidecar()


# -- who attached it -------------------------------------------------------------------------------------------------


def test_all_pins_are_gone_open_connections_go_on_and_the_rules_serve_new_ones(build, server):
    rig = build()
    with ruled(rig), rig.sleep.app.connect(rig.hello.ip, PORT) as client, server.accept()[0] as app:
        shutil.rmtree(rig.pins)
        client.sendall(b"goes on")
        assert receive(app, 7) == b"goes on"
        before = rig.sleep.redirected_packets()
        assert talk(rig.sleep.app.connect(rig.hello.ip, PORT), server)[0] == "127.0.0.6"
        assert rig.sleep.redirected_packets() == before + 1


def test_maps_are_frozen_what_is_attached_goes_on(build, server):
    rig = build()
    for name in ("config", "kernel", "pods", "pod_ips", "pairs", "peers", "listeners", "live", "counters"):
        with table(rig, name) as fd:
            bpf_syscall.call(22, struct.pack("=I", fd), "freeze a map")
    sleep, _ = call(rig, server)
    assert sleep["outbound_redirected_bytes"] > 0
    assert any("frozen" in problem for problem in rig.problems())


def test_two_pods_with_one_address_are_refused(rig):
    from dataclasses import replace

    double = replace(rig.hello.endpoint, ip=rig.sleep.ip)
    with pytest.raises(LabError, match="have the same address"):
        rig.plane.attach([rig.sleep.endpoint, double])
    assert rig.problems() == [], "what was served before is"
