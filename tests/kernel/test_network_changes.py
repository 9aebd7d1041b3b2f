"""What the kernel reports of a network namespace: changes that are undone at once, settings written, ends of links."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from merbridge_lab.adapters import links, netns, network_dump, packet_sockets, sysctls
from merbridge_lab.adapters.command import run
from merbridge_lab.adapters.network_changes import Change, Listener

pytestmark = pytest.mark.kernel


@contextlib.contextmanager
def space():
    """Return the path of a network namespace that lasts as long as the block; its loopback is up."""
    made, over = threading.Event(), threading.Event()
    found = []

    def body():
        found.append(Path(f"/proc/self/task/{threading.get_native_id()}/ns/net"))
        made.set()
        over.wait()

    thread = threading.Thread(target=lambda: netns.run_in_new(body))
    thread.start()
    made.wait()
    try:
        links.set_up(found[0], {})
        yield found[0]
    finally:
        over.set()
        thread.join()


def inside(where, words):
    run(["nsenter", f"--net={where}", *words.split()])


def outside(where):
    """Return a path to a namespace that other processes can open, too."""
    return Path(str(where).replace("/proc/self/", f"/proc/{os.getpid()}/"))


def test_what_comes_and_goes_at_once_is_heard_and_only_where_it_did():
    with space() as here, space() as there, contextlib.ExitStack() as stack:
        listener, other = (stack.enter_context(contextlib.closing(Listener(each))) for each in (here, there))
        assert listener.changes() == []
        for words in (
            "ip rule add prio 100 from 192.0.2.1 lookup 7",
            "ip rule del prio 100",
            "ip address add 192.0.2.7/32 dev lo",
            "ip address del 192.0.2.7/32 dev lo",
            "sysctl -q -w net.ipv4.conf.lo.rp_filter=2",
        ):
            inside(outside(here), words)
        heard = listener.changes()
        rule = "100: ipv4 table 7 src_len 32 src 192.0.2.1"
        assert heard[:2] == [Change(True, "rule", rule), Change(False, "rule", rule)]
        assert Change(True, "address", "192.0.2.7/32 dev lo") in heard
        assert Change(False, "address", "192.0.2.7/32 dev lo") in heard
        assert Change(True, "setting", "ipv4/conf/lo/rp_filter 2") in heard
        assert (listener.changes(), other.changes()) == ([], [])


def test_a_setting_that_is_written_is_heard_and_only_where_it_was():
    with space() as here, space() as there, contextlib.closing(sysctls.Writes()) as writes:
        for name, where in (("here", here), ("there", there)):
            netns.run_inside(where, lambda name=name: writes.add(name, ["ipv4", "ipv4/conf/lo"]))
        inside(outside(here), "sysctl -q -w net.ipv4.tcp_sack=0 net.ipv4.tcp_sack=1 net.ipv4.conf.lo.tag=0")
        assert set(writes.seen()) == {("here", "ipv4/tcp_sack"), ("here", "ipv4/conf/lo/tag")}
        assert netns.run_inside(here, lambda: sysctls.read(["ipv4/tcp_sack"])) == {"ipv4/tcp_sack": "1"}


def test_a_link_tells_by_number_in_which_namespace_it_ends():
    with space() as here, space() as there, space() as elsewhere:
        assert links.number_of(here, there) is None
        inside(outside(here), f"ip link add near type veth peer name far netns {outside(there)}")
        near, far = network_dump.read(here).links["near"], network_dump.read(there).links["far"]
        assert (near.peer, far.peer) == (far.index, near.index)
        assert (near.space, far.space) == (links.number_of(here, there), links.number_of(there, here))
        assert near.space is not None
        assert links.number_of(here, elsewhere) != near.space


def test_packet_sockets_are_seen_where_they_are():
    with space() as here, space() as there:
        with netns.run_inside(here, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))) as sock:
            (seen,) = netns.run_inside(here, packet_sockets.here)
            assert seen == (int(Path(f"/proc/self/fd/{sock.fileno()}").readlink().name[8:-1]), "every packet", "")
            assert netns.run_inside(there, packet_sockets.here) == []
        assert netns.run_inside(here, packet_sockets.here) == []
