"""Pods are served and forgotten one at a time: under traffic, after their death, by another process, with one switch.

Without Istio's rules, so that a connection that eBPF does not bring to a sidecar is seen: the app's peer is 127.0.0.6
only if its own sidecar delivers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dataplane_build import changed
from dataplane_rig import Agent, NodeView, Rig, until
from test_dataplane_attach import exchange, ours, receive, still
from test_dataplane_traffic import PORT, grown, rules_in, talk

from merbridge_lab.adapters import bpf_maps, bpf_syscall
from merbridge_lab.dataplane import Endpoint, Reconciler, Served, abi, garbage
from merbridge_lab.dataplane.pins import HOOKS, Pins, opened, unlink
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    import socket

pytestmark = pytest.mark.kernel

ADDRESS = "10.99.7.21"
SIDECARS = "127.0.0.6"


@pytest.fixture
def rig(shared):
    """The rig with nothing attached, before and after."""
    shared.plane.detach(2.0)
    yield shared
    shared.plane.detach(2.0)
    assert attachments(shared) == {}


@pytest.fixture
def node(rig):
    """A reconciler with programs and maps, that serves sleep and hello."""
    node = Reconciler(rig.pins)
    node.install()
    for endpoint in rig.endpoints:
        node.serve(endpoint)
    return node


@pytest.fixture
def server(rig):
    with rig.hello.app.listen(PORT) as listener:
        yield listener


def attachments(rig: Rig) -> dict[str, list[int]]:
    """Return what is attached to the rig's cgroups, and to the namespaces of its pods."""
    found = {}
    places = [(Path(path), hook.attach_type) for path, _, _ in os.walk(rig.root) for hook in HOOKS]
    places += [(each.app.netns, bpf_syscall.SK_LOOKUP) for each in (rig.sleep, rig.hello, rig.control_client)]
    for path, kind in places:
        fd = os.open(path, os.O_RDONLY)
        if programs := bpf_syscall.attached_progs(fd, kind):
            found[f"{path} {kind}"] = programs
        os.close(fd)
    return found


def links_of(rig: Rig, uid: str) -> dict[str, tuple[int, int]]:
    """Return the ids of the links of a pod, and of the programs that they run."""
    found = {}
    for pin in Pins(rig.pins).links_of(uid).iterdir():
        with opened(pin) as fd:
            link = bpf_syscall.link_info(fd)
            found[pin.name] = (link.id, link.prog_id)
    return found


def mentions(rig: Rig, cookie: int) -> list[str]:
    """Return the maps that hold something for a network namespace."""
    pins, found = Pins(rig.pins), []
    raw = cookie.to_bytes(8, sys.byteorder)
    for name in ("pods", "pod_ips", "ports", "ranges", "counters", "live", "pairs", "listeners"):
        with pins.open_map(name) as fd:
            info = bpf_syscall.map_info(fd)
            for key in bpf_maps.keys(fd, info.key_size):
                per_cpu = name in ("counters", "listeners")
                value = b"" if per_cpu else bpf_maps.lookup(fd, key, info.value_size) or b""
                found += [name] * (raw in key + value)
    return found


class Asking:
    """Asks hello from sleep without a pause, on new connections, in the background; `failed` says what went wrong."""

    def __init__(self, rig: Rig, server: socket.socket) -> None:
        self.rig, self.server = rig, server
        self.client = Agent(rig.sleep.cgroup / "app", str(rig.sleep.app.netns))
        self.done, self.failed, self.stop = 0, [], threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self.stop.is_set():
            try:
                peer = talk(self.client.connect(self.rig.hello.ip, PORT), self.server, (3000,))
                if peer[0] != SIDECARS:
                    self.failed.append(f"request {self.done} came past the sidecar, from {peer}")
            except (OSError, AssertionError) as error:
                self.failed.append(f"request {self.done}: {error!r}")
                return
            self.done += 1

    def more_are_served(self, count: int = 5) -> None:
        now = self.done
        until(lambda: self.done >= now + count or self.failed, "requests are served")

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop.set()
        self.thread.join()
        self.client.end()


def test_pods_come_and_go_one_at_a_time_under_traffic(rig, node, server):
    uids = [endpoint.uid for endpoint in rig.endpoints]
    before, own = [links_of(rig, uid) for uid in uids], rig.control_client.endpoint
    live = rig.sleep.app.connect(rig.hello.ip, PORT)
    app = server.accept()[0]
    with live, app, rig.control_client.app.listen(PORT) as other, Asking(rig, server) as asking:
        for _ in range(10):
            node.serve(own)
            assert node.problems(own) == []
            assert set(node.served()) == {*uids, own.uid}
            assert talk(rig.sleep.app.connect(own.ip, PORT), other)[0] == SIDECARS
            assert talk(rig.node.connect(own.ip, PORT), other)[0] == SIDECARS
            node.forget(own.uid)
            assert set(node.served()) == set(uids)
            assert mentions(rig, rig.control_client.cookie) == []
            assert talk(rig.node.connect(own.ip, PORT), other)[0] != SIDECARS, "not served any more: the control"
            exchange(live, app)
            asking.more_are_served()
    assert asking.failed == []
    assert [links_of(rig, uid) for uid in uids] == before, "nobody else's links were touched"
    assert not [place for place in attachments(rig) if "twin" in place]


def test_a_pod_is_served_as_it_says(rig, node):
    sleep = rig.sleep.endpoint
    number = rig.sleep.cgroup.stat().st_ino
    assert node.served()[sleep.uid] == Served("", "sleep", sleep.uid, sleep.ip, rig.sleep.cookie, number)
    other = replace(sleep, namespace="shop", uid="0f7c5a52-3a1e-4b52-a0fe-6a2c1b1f0e11")
    node.serve(other)
    assert set(node.served()) == {other.uid, rig.hello.endpoint.uid}
    assert node.problems(other) == []
    assert {each.attached_to for each in node.programs() if each.name == "merlab_connect4"} <= {
        "cgroup of hello, cgroup of shop/sleep",
        "cgroup of shop/sleep, cgroup of hello",
    }
    assert set(node.counters()) == {other.uid, rig.hello.endpoint.uid}
    assert {name.partition(" of ")[2] for name in node.links()} == {"shop/sleep", "hello"}


def test_serving_again_changes_nothing_and_mends_what_is_broken(rig, node):
    sleep, hello = rig.endpoints
    before = links_of(rig, sleep.uid), links_of(rig, hello.uid), node.counters()
    node.serve(hello)
    assert (links_of(rig, sleep.uid), links_of(rig, hello.uid), node.counters()) == before
    unlink(Pins(rig.pins).link(hello.uid, "sockops"))
    assert node.problems(hello) == ["link sockops of hello is not pinned"]
    assert node.problems(sleep) == []
    node.serve(hello)
    assert node.problems(hello) == []
    assert links_of(rig, sleep.uid) == before[0]
    assert {name for name, link in links_of(rig, hello.uid).items() if link != before[1][name]} == {"sockops"}


def test_no_byte_is_lost_when_a_pod_is_forgotten(rig, node, server):
    """Streams both ways; the pod that accepts is forgotten in the middle, then the one that dials."""
    for uid in (rig.hello.endpoint.uid, rig.sleep.endpoint.uid):
        client = rig.sleep.app.connect(rig.hello.ip, PORT)
        app = server.accept()[0]
        app.settimeout(10)
        got: dict[str, bytes] = {}
        blocks = {"there": os.urandom(6_000_000), "back": os.urandom(6_000_000)}

        def run(sender, receiver, name, blocks=blocks, got=got) -> list[threading.Thread]:
            def read() -> None:
                got[name] = receive(receiver, len(blocks[name]))

            threads = [threading.Thread(target=sender.sendall, args=(blocks[name],)), threading.Thread(target=read)]
            for thread in threads:
                thread.start()
            return threads

        threads = run(client, app, "there") + run(app, client, "back")
        until(lambda: any(sum(pair.redirected_bytes) > 100_000 for pair in node.pairs()), "bytes move")
        node.forget(uid)
        for thread in threads:
            thread.join(20)
        assert got == blocks
        exchange(client, app)
        assert not [pair for pair in node.pairs() if "" in pair.pods]
        client.close(), app.close()
        for endpoint in rig.endpoints:
            node.serve(endpoint)


def test_an_address_that_is_used_again_at_once_leads_to_the_new_pod(rig, node):
    old = rig.new_pod("old", ADDRESS)
    first = old.endpoint
    node.serve(first)
    cookie = old.cookie
    old.end()
    new = rig.new_pod("new", ADDRESS)
    with new.app.listen(PORT) as listener:
        second = new.endpoint
        node.serve(second)
        assert mentions(rig, cookie) == []
        assert set(node.served()) == {*(each.uid for each in rig.endpoints), second.uid}
        for _ in range(2):
            for client in (rig.sleep.app, rig.node):
                assert talk(client.connect(ADDRESS, PORT), listener)[0] == SIDECARS
            assert new.log()[-1]["original"] == [ADDRESS, PORT]
            node.forget(first.uid)  # late: the address is another's by now
        assert node.problems(second) == []
        node.forget(second.uid)
        assert mentions(rig, new.cookie) == []
    new.end()


def test_a_pod_whose_sandbox_is_made_again_keeps_its_uid_and_nothing_else(rig, node):
    uid = "6f1d9a3e-static"
    old = rig.new_pod("again", ADDRESS)
    node.serve(replace(old.endpoint, uid=uid))
    cookie = old.cookie
    old.end()
    new = rig.new_pod("again", ADDRESS)
    node.serve(replace(new.endpoint, uid=uid))
    assert node.problems(replace(new.endpoint, uid=uid)) == []
    assert mentions(rig, cookie) == []
    assert node.served()[uid].netns == new.cookie
    node.forget(uid)
    new.end()


def test_a_dead_pod_is_forgotten_by_its_uid(rig, node, server):
    gone = rig.new_pod("gone", ADDRESS)
    endpoint = gone.endpoint
    node.serve(endpoint)
    with gone.app.listen(PORT) as listener:
        client = rig.sleep.app.connect(ADDRESS, PORT)
        app = listener.accept()[0]
        client.sendall(b"never read by the app")
        until(lambda: all(sum(pair.redirected_bytes) for pair in node.pairs()) and len(node.pairs()) == 3, "it moved")
        app.close()
    dialling = gone.app.ask(op="begin", to=[rig.hello.ip, 9])[1]
    cookie = gone.cookie
    dialling.close()
    gone.end()
    client.close()
    uid = endpoint.uid
    assert node.served()[uid].name == "gone"
    assert any("does not exist" in told for told in node.problems(endpoint))
    node.forget(uid)
    assert uid not in node.served()
    assert mentions(rig, cookie) == []
    assert uid not in Pins(rig.pins).uids()
    assert talk(rig.sleep.app.connect(rig.hello.ip, PORT), server)[0] == SIDECARS
    until(lambda: not node.pairs(), "connections have ended")
    with Pins(rig.pins).open_map("live") as fd:
        assert bpf_maps.lookup(fd, bytes(8), 8) == bytes(8), "nothing is counted for all any more"
    node.forget(uid)


ANOTHER = """
import json, sys
from pathlib import Path
from merbridge_lab.dataplane import Reconciler
node = Reconciler(Path(sys.argv[1]))
node.install()
assert "bcc" not in sys.modules
print(json.dumps(sorted(each.name for each in node.served().values())))
node.forget(sys.argv[2])
"""


def test_another_process_continues_with_what_is_pinned(rig, node, server):
    sleep, hello = rig.endpoints
    node.serve(rig.control_client.endpoint)
    before = links_of(rig, sleep.uid), links_of(rig, hello.uid), ours(rig)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    argv = [sys.executable, "-c", ANOTHER, str(rig.pins), rig.control_client.endpoint.uid]
    with Asking(rig, server) as asking:
        asking.more_are_served()
        done = subprocess.run(argv, env=env, check=True, capture_output=True, text=True, timeout=20)
        asking.more_are_served()
    assert asking.failed == []
    assert json.loads(done.stdout) == ["hello", "sleep", "twin"]
    assert set(node.served()) == {sleep.uid, hello.uid}
    assert (links_of(rig, sleep.uid), links_of(rig, hello.uid), ours(rig)) == before


def test_one_write_switches_redirecting_off_for_the_node(rig, node, server):
    """As with bpftool, without anything of merlab: what is established goes on, what is new is the rules'."""
    live = rig.sleep.app.connect(rig.hello.ip, PORT)
    app = server.accept()[0]
    app.settimeout(10)
    exchange(live, app)
    assert node.redirecting
    with Pins(rig.pins).open_map("config") as fd:
        bpf_maps.update(fd, bytes(4), bytes(bpf_syscall.map_info(fd).value_size))
    assert not node.redirecting
    before = node.counters()
    exchange(live, app, 200_000)
    assert talk(rig.sleep.app.connect(rig.hello.ip, PORT), server)[0] == rig.sleep.ip, "without rules: directly"
    assert talk(rig.node.connect(rig.hello.ip, PORT), server)[0] != SIDECARS
    with rules_in((rig.sleep, rig.hello)):
        assert talk(rig.sleep.app.connect(rig.hello.ip, PORT), server)[0] == SIDECARS
        assert rig.sleep.redirected_packets() == 1
        assert rig.hello.log()[-1]["original"] == [rig.hello.ip, PORT]
    moved = {uid: grown(before[uid], after) for uid, after in node.counters().items()}
    sleep, hello = (moved[endpoint.uid] for endpoint in rig.endpoints)
    assert sleep["passed_redirect_off"] >= 1 <= hello["passed_redirect_off"]
    assert sleep["left_to_rules"] >= 2
    assert not [name for name in (*sleep, *hello) if "redirected" in name or name.endswith("steered")]
    assert not {"outbound_connects", "mesh_connects", "sk_lookup_assigned"} & (sleep.keys() | hello.keys())
    node.install()
    assert not node.redirecting, "an agent that starts again does not switch it on"
    node.redirecting = True
    assert talk(rig.sleep.app.connect(rig.hello.ip, PORT), server)[0] == SIDECARS
    exchange(live, app)
    live.close(), app.close()


def test_nothing_is_left_after_remove(rig, node, server):
    objects = ours(rig)
    live = rig.sleep.app.connect(rig.hello.ip, PORT)
    app = server.accept()[0]
    app.settimeout(10)
    exchange(live, app)
    assert len(attachments(rig)) == 2 * (len(HOOKS) + 1)
    assert rig.pins.stat().st_mode & 0o777 == 0o700
    assert {len(programs) for programs in attachments(rig).values()} == {1}
    detached = node.remove(2.0)
    assert (detached.drained, detached.left) == (6, 0)
    assert attachments(rig) == {}
    assert not rig.pins.exists()
    exchange(live, app)
    live.close(), app.close()
    until(lambda: not still(objects), "no program or map is in the kernel")
    node.remove(1.0)


@pytest.mark.parametrize("what", ["cgroup", "namespace", "uid"])
def test_a_pod_that_cannot_be_served_is_not_half_attached(rig, node, tmp_path, what):
    own = rig.control_client.endpoint
    wrong: dict[str, Endpoint] = {
        "cgroup": replace(own, cgroup=tmp_path),
        "namespace": replace(own, netns=tmp_path),
        "uid": replace(own, uid="../links"),
    }
    before = attachments(rig)
    with pytest.raises(LabError, match=r"cannot be (attached|entered|served)"):
        node.serve(wrong[what])
    assert attachments(rig) == before
    assert mentions(rig, rig.control_client.cookie) == []
    assert set(node.served()) == {endpoint.uid for endpoint in rig.endpoints}


def test_what_a_killed_process_left_of_a_pod_is_removed(rig, node):
    """Killed while it serves: links without entries. Killed while it forgets: entries without links. Or either."""
    own = rig.control_client.endpoint
    node.serve(own)
    pins = Pins(rig.pins)
    with pins.open_map("pods") as fd:
        bpf_maps.delete(fd, rig.control_client.cookie.to_bytes(8, sys.byteorder))
    assert node.served()[own.uid] == Served("", "", own.uid, "", 0, 0)
    node.forget(own.uid)
    assert own.uid not in node.served()
    assert mentions(rig, rig.control_client.cookie), "nobody knows whose they are"
    node.settle()
    assert mentions(rig, rig.control_client.cookie) == []
    assert [node.problems(endpoint) for endpoint in rig.endpoints] == [[], []]
    node.serve(own)
    for pin in pins.links_of(own.uid).iterdir():
        with opened(pin) as link:
            bpf_syscall.link_detach(link)
        pin.unlink()
    pins.links_of(own.uid).rmdir()
    assert node.served()[own.uid].name == "twin"
    node.forget(own.uid)
    assert mentions(rig, rig.control_client.cookie) == []


def on_one_cgroup(rig: Rig) -> None:
    """Lay the links as versions did up to now: on one cgroup above all pods, sk_lookup by the names of pods."""
    pins = Pins(rig.pins)
    where = os.open(rig.mesh, os.O_RDONLY)
    for hook in HOOKS:
        with opened(pins.prog(hook.program)) as program:
            link = bpf_syscall.link_create(program, where, hook.attach_type)
        bpf_syscall.pin(link, pins.root / "links" / hook.name)
        os.close(link)
    os.close(where)
    (pins.root / "links/sk_lookup").mkdir()
    for place in (rig.sleep, rig.hello):
        folder = pins.links_of(place.endpoint.uid)
        (folder / "sk_lookup").rename(pins.root / "links/sk_lookup" / place.name)
        for pin in folder.iterdir():
            with opened(pin) as link:
                bpf_syscall.link_detach(link)
            pin.unlink()
        folder.rmdir()


@pytest.mark.parametrize("layout", ["links by pod", "links on one cgroup"])
@pytest.mark.parametrize("off", [False, True], ids=["on", "switched off"])
def test_another_version_is_taken_over_pod_by_pod(rig, server, tmp_path, layout, off):
    node = Reconciler(rig.pins)
    with changed(tmp_path / "bpf", ("merlab.c", '#include "common.h"', '#include "common.h"\n// another version')):
        node.install()
        for endpoint in rig.endpoints:
            node.serve(endpoint)
        if layout == "links on one cgroup":
            on_one_cgroup(rig)
        node.redirecting = not off
        before, stamp = ours(rig), Pins(rig.pins).stamp()
    if off:
        node.install()
        assert not node.redirecting
        node.remove(1.0)
        return
    live = rig.sleep.app.connect(rig.hello.ip, PORT)
    app = server.accept()[0]
    app.settimeout(10)
    with Asking(rig, server) as asking:
        asking.more_are_served(20)
        node.install()
        assert Pins(rig.pins).stamp() == abi.stamp() != stamp
        for endpoint in rig.endpoints:
            asking.more_are_served(20)
            node.serve(endpoint)
        asking.more_are_served(20)
        node.settle({endpoint_cookie(rig, endpoint): endpoint.netns for endpoint in rig.endpoints})
        asking.more_are_served(20)
        exchange(live, app)
    assert asking.failed == []
    assert not (rig.pins / "old").exists()
    assert rig.problems() == []
    assert {len(programs) for programs in attachments(rig).values()} == {1}
    assert not [place for place in attachments(rig) if place.startswith(f"{rig.mesh} ")]
    assert node.counters()[rig.sleep.endpoint.uid]["mesh_redirected_bytes"] > 0
    live.close(), app.close()
    until(lambda: not still(before), "with its last socket all of the other version is gone", 8)


def version(folder: Path, number: int):
    """Use sources that differ in nothing but their stamp."""
    include = '#include "common.h"'
    return changed(folder / f"bpf{number}", ("merlab.c", include, f"{include}\n// version {number}"))


def test_a_takeover_that_nobody_ended_does_not_stop_the_next_version(rig, server, tmp_path):
    node = Reconciler(rig.pins)
    objects = set()
    for number in (1, 2):
        with version(tmp_path, number):
            node.install()
            for endpoint in rig.endpoints[:number]:
                node.serve(endpoint)
            objects |= ours(rig)
    assert (rig.pins / "old").exists()
    with pytest.raises(LabError, match="are not loaded"):
        node.serve(rig.hello.endpoint)
    node.install()
    for endpoint in rig.endpoints:
        node.serve(endpoint)
    assert talk(rig.sleep.app.connect(rig.hello.ip, PORT), server)[0] == SIDECARS
    node.settle()
    assert rig.problems() == []
    assert {len(programs) for programs in attachments(rig).values()} == {1}
    until(lambda: not still(objects), "nothing of both is left")


def test_without_programs_nothing_is_served_and_forgetting_succeeds(rig):
    node = Reconciler(rig.pins)
    assert node.served() == {}
    assert node.counters() == {}
    with pytest.raises(LabError, match="are not loaded"):
        node.serve(rig.sleep.endpoint)
    node.forget(rig.sleep.endpoint.uid)
    assert node.programs_problems()
    assert attachments(rig) == {}


def endpoint_cookie(rig: Rig, endpoint: Endpoint) -> int:
    places: dict[str, NodeView] = {"sleep": rig.sleep, "hello": rig.hello}
    return places[endpoint.name].cookie


def test_connections_that_nobody_counts_down_are_collected(rig, node, server):
    with rig.sleep.app.connect(rig.hello.ip, PORT) as client, server.accept()[0] as app:
        exchange(client, app)
        for endpoint in rig.endpoints:
            unlink(Pins(rig.pins).link(endpoint.uid, "sockops"))
    until(lambda: not rig.sleep.app.sh("ss", "-Htn", "state", "established"), "it has ended")
    with Pins(rig.pins).open_map("pairs") as fd:
        assert garbage.connections(fd)
    for endpoint in rig.endpoints:
        node.serve(endpoint)
    node.settle({rig.sleep.cookie: rig.sleep.endpoint.netns})
    with Pins(rig.pins).open_map("pairs") as fd:
        left = garbage.connections(fd)
        assert {rig.hello.cookie in pair["netns"] for pair in left.values()} == {True}, "nobody asked about hello"
    node.settle({endpoint_cookie(rig, endpoint): endpoint.netns for endpoint in rig.endpoints})
    with Pins(rig.pins).open_map("pairs") as fd:
        assert garbage.connections(fd) == {}
