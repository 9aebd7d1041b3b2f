"""Attach and detach the dataplane on this kernel: under live traffic, half done, broken and repaired."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from dataplane_rig import Rig, until

from merbridge_lab.adapters import bpf_maps, bpf_syscall
from merbridge_lab.dataplane import Dataplane, Endpoint, sockhash
from merbridge_lab.dataplane.pins import Pins, opened, u64
from merbridge_lab.errors import LabError

pytestmark = pytest.mark.kernel

PORT = 5000


def loaded(rig: Rig) -> set[tuple[str, int]]:
    """Return every program, map and link in the kernel that this rig created, as far as names and targets show."""
    found = set()
    places = (rig.sleep, rig.hello)
    cgroups = {path.stat().st_ino for path in (rig.mesh, *(place.cgroup for place in places))}
    namespaces = {place.app.netns.stat().st_ino for place in places}
    for number in bpf_syscall.ids("link"):
        try:
            fd = bpf_syscall.by_id("link", number)
        except OSError:
            continue
        if bpf_syscall.link_info(fd).target in {*cgroups, *namespaces}:
            found.add(("link", number))
        os.close(fd)
    return found


def ours(rig: Rig) -> set[tuple[str, int]]:
    """Return the ids of the pinned programs and of the maps that they use."""
    found = set()
    for path in (rig.pins / "progs").iterdir():
        with opened(path) as fd:
            info = bpf_syscall.prog_info(fd)
            found |= {("prog", info.id), *(("map", number) for number in info.map_ids)}
    return found


def still(objects: set[tuple[str, int]]) -> set[tuple[str, int]]:
    return {(kind, number) for kind, number in objects if number in set(bpf_syscall.ids(kind))}


@pytest.fixture
def rig(shared):
    """The rig with nothing attached, before and after."""
    shared.plane.detach(2.0)
    yield shared
    shared.plane.detach(2.0)
    assert not shared.pins.exists() or not list(shared.pins.rglob("*"))


@pytest.fixture
def server(rig):
    with rig.hello.app.listen(PORT) as listener:
        yield listener


def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    return data


def request(rig: Rig, server: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = rig.sleep.app.connect(rig.hello.ip, PORT)
    app, peer = server.accept()
    app.settimeout(10)
    assert peer[0] == "127.0.0.6"
    exchange(client, app)
    return client, app


def exchange(client: socket.socket, app: socket.socket, size: int = 1000) -> None:
    for one, other in ((client, app), (app, client)):
        message = os.urandom(size)
        one.sendall(message)
        assert receive(other, size) == message


def test_sidecars_that_listened_before_are_served(rig, server):
    assert rig.problems()[0].startswith("nothing is attached")
    assert not rig.plane.attached
    rig.attach()  # the rig's sidecars have been listening all the time
    assert rig.problems() == []
    assert rig.plane.attached
    node = rig.node.connect(rig.hello.ip, PORT)
    app, peer = server.accept()
    assert peer[0] == "127.0.0.6"
    node.close(), app.close()
    for sock in request(rig, server):
        sock.close()


@pytest.mark.smoke
def test_attach_twice_changes_nothing(rig):
    rig.attach()
    before = rig.plane.programs(), loaded(rig), rig.plane.counters()
    rig.attach()
    assert (rig.plane.programs(), loaded(rig), rig.plane.counters()) == before
    assert {program.name for program in rig.plane.programs()} >= {"merlab_connect4", "merlab_sk_msg", "merlab_lookup"}
    on_demand = {"merlab_unread", "merlab_forget", "merlab_release"}
    assert all((each.attached_to == "nothing") is (each.name in on_demand) for each in rig.plane.programs())


def test_a_connection_older_than_the_attachment_is_left_alone(rig):
    with rig.hello.app.listen(
        15020
    ) as listener:  # not steered, so that it is a connection of application to application
        client = rig.sleep.app.connect(rig.hello.ip, 15020)
        app = listener.accept()[0]
        exchange(client, app)
        rig.attach()
        exchange(client, app, 100_000)
        assert rig.plane.pairs() == []
        rig.plane.detach(1.0)
        exchange(client, app)
        client.close(), app.close()


def test_a_live_connection_survives_detaching_and_nothing_is_left(rig, server):
    rig.attach()
    objects = ours(rig) | loaded(rig)
    assert len(objects) > 20
    client, app = request(rig, server)
    assert {pair.leg for pair in rig.plane.pairs()} == {"outbound", "mesh", "inbound"}
    detached = rig.plane.detach(2.0)
    assert (detached.drained, detached.left) == (6, 0)
    assert still(loaded(rig)) == set()
    exchange(client, app, 200_000)
    client.close(), app.close()
    until(lambda: not still(objects), "no program, map or link of ours is in the kernel")
    assert rig.plane.programs() == []
    assert rig.plane.counters() == {}
    assert rig.plane.pairs() == []


def test_no_byte_is_lost_over_detaching(rig, server):
    """Streams both ways, with unread bytes at every instant; detached in the middle, five times."""
    for _ in range(5):
        rig.attach()
        client, app = request(rig, server)
        stop = threading.Event()
        sums: dict[str, list] = {}

        def send(sock: socket.socket, name: str, stop=stop, sums=sums) -> None:
            digest, total = hashlib.sha256(), 0
            while not stop.is_set():
                block = os.urandom(20_000)
                sock.sendall(block)
                digest.update(block)
                total += len(block)
            sock.shutdown(socket.SHUT_WR)
            sums[name] = [total, digest.hexdigest()]

        def read(sock: socket.socket, name: str, sums=sums) -> None:
            digest, total = hashlib.sha256(), 0
            while block := sock.recv(30_000):
                digest.update(block)
                total += len(block)
            sums[name] = [total, digest.hexdigest()]

        jobs = [(send, client, "there"), (read, app, "arrived"), (send, app, "back"), (read, client, "returned")]
        threads = [threading.Thread(target=job, args=args) for job, *args in jobs]
        for thread in threads:
            thread.start()
        until(lambda: sum(sum(pair.redirected_bytes) for pair in rig.plane.pairs()) > 2_000_000, "bytes move")
        detached = rig.plane.detach(3.0)
        time.sleep(0.02)
        stop.set()
        for thread in threads:
            thread.join(20)
        assert detached.left == 0
        assert sums["there"] == sums["arrived"]
        assert sums["back"] == sums["returned"]
        client.close(), app.close()


def test_unread_bytes_at_the_deadline_stay_and_are_not_lost(rig, server):
    rig.attach()
    objects = ours(rig)
    client, app = request(rig, server)
    message = os.urandom(50_000)
    client.sendall(message)
    until(lambda: rig.plane.pairs() and all(sum(p.redirected_bytes) >= 52_000 for p in rig.plane.pairs()), "they moved")
    detached = rig.plane.detach(0.3)
    assert (detached.drained, detached.left) == (5, 1)
    assert receive(app, len(message)) == message
    exchange(client, app)
    client.close(), app.close()
    until(lambda: not still(objects), "no program or map is left")


def broken_pin(name: str):
    return lambda rig: (rig.pins / name).unlink(), name


def link(rig: Rig, hook: str) -> Path:
    return Pins(rig.pins).link(rig.hello.endpoint.uid, hook)


def cookie(rig: Rig) -> bytes:
    return u64(rig.hello.cookie)


def forget(table: str):
    def act(rig: Rig) -> None:
        with Pins(rig.pins).open_map(table) as fd:
            assert bpf_maps.delete(fd, cookie(rig))

    return act


def forget_listener(rig: Rig) -> None:
    with Pins(rig.pins).open_map("listeners") as fd:
        (key,) = sockhash.listener_keys(fd, rig.hello.cookie)
        assert bpf_maps.delete(fd, key)


def detach_link(rig: Rig) -> None:
    with opened(link(rig, "sockops")) as fd:
        bpf_syscall.link_detach(fd)


def foreign_cgroup(rig: Rig) -> None:
    pin = link(rig, "connect4")
    with opened(pin) as fd:  # without this the kernel detaches it a moment after its last descriptor was closed
        bpf_syscall.link_detach(fd)
    pin.unlink()
    where = os.open(rig.mesh / "sleep", os.O_RDONLY)
    with opened(rig.pins / "progs/connect4") as program:
        made = bpf_syscall.link_create(program, where, bpf_syscall.CGROUP_INET4_CONNECT)
    bpf_syscall.pin(made, pin)
    os.close(made), os.close(where)


def swapped(rig: Rig) -> None:
    pin = rig.pins / "progs/connect4"
    pin.unlink()
    with opened(rig.pins / "progs/connect6") as program:
        bpf_syscall.pin(program, pin)


def other_version(rig: Rig) -> None:
    with opened(rig.pins / "maps/stamp") as fd:
        bpf_maps.update(fd, bytes(4), b"0.0.9+x".ljust(64, b"\0"))


BREAKAGES = {
    "link unpinned": (lambda rig: link(rig, "connect4").unlink(), "link connect4 of hello is not pinned"),
    "getsockopt unpinned": (lambda rig: link(rig, "getsockopt").unlink(), "link getsockopt of hello is not pinned"),
    "lookup link unpinned": (lambda rig: link(rig, "sk_lookup").unlink(), "link sk_lookup of hello is not pinned"),
    "link detached": (detach_link, "sockops of hello is attached to nothing"),
    "other cgroup": (foreign_cgroup, "connect4 of hello is attached to cgroup"),
    "program unpinned": (lambda rig: (rig.pins / "progs/sk_msg").unlink(), "program sk_msg is not pinned"),
    "program swapped": (swapped, "the pin of program connect4 holds merlab_connect6"),
    "map unpinned": (lambda rig: (rig.pins / "maps/peers").unlink(), "map peers is not pinned"),
    "config unpinned": (lambda rig: (rig.pins / "maps/config").unlink(), "map config is not pinned"),
    "stamp unpinned": (lambda rig: (rig.pins / "maps/stamp").unlink(), "no valid stamp"),
    "other version": (other_version, "made by merlab 0.0.9+x"),
    "pod forgotten": (forget("pods"), "pod hello is not in the pod map"),
    "counters forgotten": (forget("counters"), "pod hello has no counters"),
    "listener forgotten": (forget_listener, "no 15006 listener registered for hello"),
    "switched off": (lambda rig: Pins(rig.pins).configure(redirect=0), "redirect is switched off"),
    "not intercepting": (lambda rig: Pins(rig.pins).configure(intercept=0), "intercept is switched off"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_what_is_broken_is_named_and_mended(rig, server, name):
    breakage, wanted = BREAKAGES[name]
    rig.attach()
    assert rig.problems() == []
    breakage(rig)
    assert [said for said in rig.problems() if wanted in said], rig.problems()
    rig.attach()
    assert rig.problems() == []
    for sock in request(rig, server):
        sock.close()


def test_sk_msg_off_its_map_is_named_and_mended(rig):
    rig.attach()
    with opened(rig.pins / "progs/sk_msg") as program, opened(rig.pins / "maps/peers") as peers:
        import struct

        bpf_syscall.call(9, struct.pack("=IIII", peers, program, bpf_syscall.SK_MSG_VERDICT, 0), "detach")
    assert rig.problems() == ["sk_msg is not attached to peers"]
    rig.attach()
    assert rig.problems() == []


def test_pods_that_go_are_dismissed(rig):
    rig.attach()
    rig.plane.attach([rig.hello.endpoint])
    assert set(rig.plane.counters()) == {"hello"}
    assert "pod hello is in the pod map, but not in this lab" in rig.plane.problems([])
    rig.attach()
    assert set(rig.plane.counters()) == {"hello", "sleep"}
    assert rig.problems() == []


def test_a_namespace_that_is_none(rig):
    with pytest.raises(LabError, match="cannot be entered"):
        rig.plane.attach([Endpoint("", "x", "", "10.9.9.9", Path("/etc/hostname"), rig.mesh)])


ATTACH = """
import sys
from pathlib import Path
from merbridge_lab.dataplane import Dataplane, Endpoint, Sidecar
pins, *pods = sys.argv[1:]
print("go", flush=True)
split = [pod.split(",") for pod in pods]
users = [Sidecar(int(pid), int(uid), int(uid)) for *_, pid, uid in split]
places = [("", p[0], p[4], p[1], Path(p[2]), Path(p[3])) for p in split]
endpoints = [Endpoint(*place, user) for place, user in zip(places, users)]
Dataplane(Path(pins)).attach(endpoints)
"""


def kill_attaching(rig: Rig, moment) -> None:
    pods = [
        f"{each.name},{each.ip},{each.netns},{each.cgroup},{each.uid},{each.sidecar.pid},{each.sidecar.uid}"
        for each in rig.endpoints
    ]
    argv = [sys.executable, "-c", ATTACH, str(rig.pins), *pods]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, env=env)
    child.stdout.readline()
    while child.poll() is None and not moment():
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()


def test_killed_while_attaching(rig, server):
    moments = [
        "progs/connect4",
        "progs/unread",
        "maps/config",
        "maps/peers",
        f"links/{rig.sleep.cookie}/getsockopt",
        f"links/{rig.sleep.cookie}/sk_lookup",
        f"links/{rig.hello.cookie}/sk_lookup",
    ]
    for number, name in enumerate(moments):
        kill_attaching(rig, (rig.pins / name).exists)
        if number % 2:
            rig.attach()
            assert rig.problems() == []
            for sock in request(rig, server):
                sock.close()
        rig.plane.detach(1.0)
        assert loaded(rig) == set()
        assert not rig.pins.exists() or not list(rig.pins.rglob("*"))


def test_killed_while_detaching(rig, server):
    """Whatever a detach had removed by then, attach() repairs it and detach() finishes it."""
    code = "import sys; from pathlib import Path; from merbridge_lab.dataplane import Dataplane\n"
    code += "print('go', flush=True); Dataplane(Path(sys.argv[1])).detach(5.0)"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    for number, name in enumerate(
        [f"links/{rig.sleep.cookie}/{hook}" for hook in ("connect4", "sk_lookup", "sockops")]
        + ["maps/stamp", "maps/pods", "progs/sk_msg"]
    ):
        rig.attach()
        client, app = request(rig, server)
        child = subprocess.Popen([sys.executable, "-c", code, str(rig.pins)], stdout=subprocess.PIPE, env=env)
        child.stdout.readline()
        while child.poll() is None and (rig.pins / name).exists():
            pass
        child.kill()
        child.wait()
        child.stdout.close()
        exchange(client, app)
        if number % 2:
            rig.attach()
            assert rig.problems() == []
            exchange(client, app)
            for sock in request(rig, server):
                sock.close()
        rig.plane.detach(1.0)
        exchange(client, app)
        client.close(), app.close()
        assert loaded(rig) == set()


def test_the_count_of_unread_bytes_for_older_kernels(rig, server, monkeypatch):
    """Before Linux 6.13 redirected bytes are charged to nobody, and the programs count them themselves."""
    monkeypatch.setattr("merbridge_lab.dataplane.kernel_probes.is_charged", lambda: False)
    rig.attach()
    client, app = request(rig, server)
    client.setblocking(False)
    sent, until_then = 0, time.monotonic() + 0.5
    while time.monotonic() < until_then:
        with contextlib.suppress(BlockingIOError):
            sent += client.send(b"x" * 65536)
    client.settimeout(10)
    (last_leg,) = [pair for pair in rig.plane.pairs() if pair.leg == "inbound"]
    assert 1 << 20 < last_leg.redirected_bytes[0] <= (2 << 20) + 65536 * 2
    assert len(receive(app, sent)) == sent
    client.close(), app.close()


def test_another_program_in_the_way_is_named(rig):
    rig.attach()
    where = os.open(rig.root, os.O_RDONLY)
    try:
        with opened(rig.pins / "progs/getpeer4") as program:
            import struct

            # flags 0: exclusive, for everything below
            attr = struct.pack("=IIIII", where, program, bpf_syscall.CGROUP_INET4_GETPEERNAME, 0, 0)
            rig.plane.detach(1.0)
            bpf_syscall.call(8, attr, "attach exclusively")
            try:
                with pytest.raises(LabError, match="holds a program that allows no other below it") as refused:
                    rig.attach()
                assert str(rig.root) in refused.value.what
            finally:
                bpf_syscall.call(
                    9, struct.pack("=IIII", where, program, bpf_syscall.CGROUP_INET4_GETPEERNAME, 0), "detach"
                )
    finally:
        os.close(where)


def test_looking_needs_no_bcc(rig):
    rig.attach()
    code = (
        "import sys; from pathlib import Path; from merbridge_lab.dataplane import Dataplane\n"
        f"d = Dataplane(Path({str(rig.pins)!r})); d.programs(), d.counters(), d.pairs()\n"
        "d.problems([])\n"
        "d.detach(1.0)\n"
        "assert 'bcc' not in sys.modules"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20, env=env)
    assert not Dataplane(rig.pins).attached
