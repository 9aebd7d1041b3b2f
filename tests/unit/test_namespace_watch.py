"""Changes during a proof, as netlink, conntrack, the maps and the sockets report them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct

import pytest

from merbridge_lab.adapters import conntrack, netlink_hooks, network_changes, network_dump, packet_sockets, sysctls
from merbridge_lab.adapters.conntrack import Translated
from merbridge_lab.adapters.network_changes import Change
from merbridge_lab.dataplane import listener_options, map_entries
from merbridge_lab.errors import ShortageError
from merbridge_lab.labs.embedded import namespace_watch, nat_entries, pod_link, topology

SLEEP, V1, _ = topology.PODS
CONTROL_CLIENT = pod_link.twin_specs()[0]
BEYOND = {"eth0": "10.244.0.1 at 02:00:00:00:00:01"}


def told(name, *changes):
    own = SLEEP if name == "sleep" else None
    return list(namespace_watch.strange(name, [Change(*each) for each in changes], own, topology.PODS, BEYOND))


# -- what changes ----------------------------------------------------------------------------------------------------


def test_a_rule_that_came_is_told_once_however_often_it_did():
    line = (True, "rule", "100: ipv4 table 7")
    assert told("node", line, (False, *line[1:]), line) == [
        "in the node's network namespace the rule 100: ipv4 table 7 came during verification"
    ]


def test_a_route_that_went_and_came_back_is_told():
    route = "unicast default dev eth0 table main scope global gateway 10.244.0.1"
    assert told("sleep", (False, "route", route), (True, "route", route)) == [
        f"in the network namespace of sleep the route {route} went during verification"
    ]


def test_what_is_told_anew_as_it_should_be_is_no_change():
    assert not told("sleep", (True, "link", "eth0 (veth) up mtu 1500"))
    assert told("sleep", (True, "link", "eth0 (veth) up mtu 1400"))


def test_twins_may_come_and_go_with_what_belongs_to_them_and_nothing_else():
    veth, ip = CONTROL_CLIENT.veth, CONTROL_CLIENT.ip
    changes = [
        (True, "link", f"{veth} (veth) down"),
        (True, "link", f"{veth} (veth) without carrier"),
        (True, "address", f"10.244.0.1/32 dev {veth}"),
        (True, "route", f"unicast {ip}/32 dev {veth} table main scope link"),
        (True, "setting", f"ipv4/conf/{veth}/forwarding 1"),
        (True, "neighbour", f"{ip} at 02:00:00:00:00:07 dev {veth}"),
        (False, "route", f"unicast {ip}/32 dev {veth} table main scope link"),
        (False, "link", f"{veth} (veth) down"),
    ]
    assert not told("node", *changes)
    assert len(told("sleep", *changes)) == 6  # nothing of it belongs in a pod; link and route are reported once
    assert told("node", (True, "route", f"unicast {V1.ip}/32 dev {veth} table main scope link"))
    assert told("node", (True, "neighbour", f"{V1.ip} at 02:00:00:00:00:07 dev {veth}"))


def test_a_neighbour_that_was_learnt_must_be_who_is_there():
    assert not told("sleep", (True, "neighbour", "10.244.0.1 at 02:00:00:00:00:01 dev eth0"))
    assert told("sleep", (True, "neighbour", "10.244.0.1 at 02:00:00:00:00:02 dev eth0"))
    assert told("sleep", (True, "neighbour", "10.244.0.1 at 02:00:00:00:00:01 dev eth0, set by hand"))


def test_a_setting_is_told_unless_it_is_as_it_should_be():
    assert told("sleep", (True, "setting", "ipv4/conf/all/rp_filter 1"))
    assert not told("sleep", (True, "setting", "ipv4/conf/all/rp_filter 0"))
    assert told("node", (True, "setting", "ipv4/conf/veth10/forwarding 0"))
    assert told("node", (True, "setting", "ipv4/conf/lo/mc_forwarding 1"))


def test_merlab_itself_changes_one_table_of_a_pods():
    assert not told("sleep", (True, "nftables table", "ip nat"))
    assert told("sleep", (True, "nftables table", "ip mangle")) == [
        "in the network namespace of sleep the nftables table ip mangle changed during verification"
    ]
    assert told("node", (True, "nftables table", "ip nat"))


def test_of_nftables_it_is_told_which_table_changed():
    table = struct.pack("=BBH", 2, 0, 0) + _attribute(1, b"mangle\0")
    assert list(network_changes._tables(10 << 8 | 6, table)) == [Change(True, "nftables table", "ip mangle")]
    assert not list(network_changes._tables(10 << 8 | 15, table))  # a new generation
    assert not list(network_changes._tables(1 << 8 | 6, table))


def test_what_netlink_tells_of_a_change_reads_as_what_it_lists():
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
    lines = [network_dump.line_of(32, each, {}) for each in netlink_hooks.dump(0, 34, body)]
    assert (True, "rule", "0: ipv4 table local") in lines
    (lo,) = netlink_hooks.dump(0, 18, struct.pack("=BBHiII", 0, 0, 0, 1, 0, 0), single=True)
    names = {}
    is_there, kind, line = network_dump.line_of(17, lo, names)
    assert (is_there, kind, names) == (False, "link", {1: "lo"})
    assert line.startswith("lo (loopback) ")
    assert network_dump.line_of(104, b"", {}) == (True, "next hop", "an object")


def test_settings_are_read_by_name_and_those_that_are_not_there_are_left_out():
    assert sysctls.read(["ipv4/ip_forward", "ipv4/no_such_setting"]).keys() == {"ipv4/ip_forward"}


# -- NAT -------------------------------------------------------------------------------------------------------------

VIP, SENT = ("10.96.0.10", 5000), ("10.244.0.10", 40000)
OUT, IN = ("127.0.0.1", 15001), ("10.244.0.10", 15006)


@pytest.mark.parametrize(
    ("entry", "is_right"),
    [
        (Translated(SENT, VIP, SENT, OUT), True),
        (Translated(SENT, VIP, ("10.244.0.10", 1024), OUT), True),  # of two that would be alike
        (Translated(("10.244.0.1", 5), ("10.244.0.10", 5000), ("10.244.0.1", 5), IN), True),
        (Translated(SENT, ("10.244.0.10", 5000), SENT, ("127.0.0.1", 15006)), True),
        (Translated(SENT, VIP, ("192.0.2.1", 40000), OUT), False),
        (Translated(SENT, OUT, SENT, IN), False),  # the rules ignore what is for the sidecar already
        (Translated(("10.244.0.11", 5), VIP, ("10.244.0.11", 5), OUT), False),
        (Translated(SENT, VIP, SENT, ("10.244.0.12", 15006)), False),
        (Translated(SENT, VIP, SENT, ("10.244.0.12", 5000)), False),
    ],
)
def test_what_istios_rules_do_not_do_in_a_pod_is_not_explained(entry, is_right):
    assert nat_entries.is_redirected(SLEEP, entry) is is_right


def test_conntrack_tells_connections_apart_by_the_port_they_come_from_and_by_nothing_else():
    assert nat_entries.is_told_apart(Translated(SENT, OUT, ("10.244.0.10", 1024), OUT))
    assert not nat_entries.is_told_apart(Translated(SENT, OUT, ("10.244.0.11", 40000), OUT))
    assert not nat_entries.is_told_apart(Translated(SENT, OUT, SENT, ("127.0.0.1", 1)))


@pytest.mark.parametrize(
    ("entry", "is_right"),
    [
        (Translated(SENT, VIP, SENT, ("10.244.0.12", 5000)), True),
        (Translated(SENT, VIP, SENT, ("10.244.0.12", 15006)), False),
        (Translated(SENT, VIP, SENT, ("10.244.0.10", 5000)), False),
        (Translated(SENT, ("10.244.0.11", 5000), SENT, ("10.244.0.12", 5000)), False),
        (Translated(SENT, VIP, ("10.244.0.1", 40000), ("10.244.0.12", 5000)), False),
    ],
)
def test_what_the_services_do_not_do_in_the_node_is_not_explained(entry, is_right):
    assert nat_entries.is_of_service(entry) is is_right


def _attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _tuple(kind, source, destination):
    ip = _attribute(1, socket.inet_aton(source[0])) + _attribute(2, socket.inet_aton(destination[0]))
    ports = b"".join(_attribute(n + 2, struct.pack("!H", end[1])) for n, end in enumerate((source, destination)))
    return _attribute(kind | 0x8000, _attribute(0x8001, ip) + _attribute(0x8002, _attribute(1, b"\x06") + ports))


@pytest.mark.parametrize(
    ("status", "back", "found"),
    [
        (0, (VIP, SENT), []),
        (0x20, (OUT, SENT), [Translated(SENT, VIP, SENT, OUT)]),
        (0, (OUT, SENT), [Translated(SENT, VIP, SENT, OUT)]),  # by hand, without NAT's mark
        (0x10, (VIP, ("10.244.0.10", 7)), [Translated(SENT, VIP, ("10.244.0.10", 7), VIP)]),
    ],
)
def test_entries_of_conntrack_that_change_an_end_are_found(monkeypatch, status, back, found):
    body = b"\x02\0\0\0" + _tuple(1, SENT, VIP) + _tuple(2, *back) + _attribute(3, struct.pack("!I", status))
    monkeypatch.setattr(netlink_hooks, "dump", lambda *_: [body])
    assert conntrack.translated() == found


# -- sockets and maps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "name", "value", "expected"),
    [
        (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30, "TCP_DEFER_ACCEPT"),
        (socket.IPPROTO_IP, socket.IP_TTL, 3, "IP_TTL"),
        (socket.SOL_SOCKET, socket.SO_RCVLOWAT, 9000, "SO_RCVLOWAT"),
    ],
)
def test_an_option_that_somebody_set_on_a_listener_is_named(level, name, value, expected):
    new = listener_options._of_new()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not list(listener_options.differing(listener, new))
        listener.setsockopt(level, name, value)
        ((option, said),) = listener_options.differing(listener, new)
    assert option == expected
    assert said.endswith(f", not {int.from_bytes(new[level, name], 'little')}")


PAIR = {"netns": [7, 8], "cookie": [1, 2]}


@pytest.mark.parametrize(
    ("pair", "live", "is_live"),
    [
        (PAIR, {1}, True),
        (PAIR, {2}, True),
        (PAIR, {3}, False),
        ({"netns": [7, 0], "cookie": [1, 0]}, {1}, True),  # not accepted yet
        ({"netns": [7, 9], "cookie": [1, 2]}, {1, 2}, False),
        ({"netns": [0, 0], "cookie": [0, 0]}, {0}, False),
    ],
)
def test_a_pair_is_of_pods_and_of_a_socket_that_is_there(pair, live, is_live):
    assert map_entries.is_live(pair, {7, 8}, live) is is_live


def test_packet_sockets_are_read():
    lines = (
        "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n"
        "0000000000000000 3      3    0003   2     1 0      0      87041 \n"
        "0000000000000000 3      2    0000   0     0 0      0      87042 \n"
        "0000000000000000 3      2    0806   5     0 0      0      87043 \n"
    )
    assert packet_sockets.read(lines, {2: "eth0"}) == [
        (87041, "every packet", "eth0"),
        (87042, "nothing", ""),
        (87043, "packets of protocol 0x0806", "link 5"),
    ]


def test_a_link_that_ends_elsewhere_is_told_of_both_ends():
    assert list(pod_link._ends_elsewhere(SLEEP, 0, 0, (0, 1))) == [
        "veth10 of the node has its other end in another network namespace than that of sleep"
    ]
    assert len(list(pod_link._ends_elsewhere(SLEEP, 3, 4, (0, 1)))) == 2
    assert len(list(pod_link._ends_elsewhere(SLEEP, None, None, (None, None)))) == 2


@pytest.mark.parametrize(
    ("call", "code", "limit"),
    [
        ("inotify_init1", errno.EMFILE, "fs.inotify.max_user_instances"),
        ("inotify_add_watch", errno.ENOSPC, "fs.inotify.max_user_watches"),
    ],
)
def test_where_inotify_is_used_up_it_is_told_which_limit_that_is(monkeypatch, call, code, limit):
    honest = sysctls._inotify

    def refuse(name, *args):
        if name == call:
            raise OSError(code, os.strerror(code))
        return honest(name, *args)

    monkeypatch.setattr(sysctls, "_inotify", refuse)
    with pytest.raises(ShortageError, match=limit) as told, contextlib.closing(sysctls.Writes()) as writes:
        writes.add("here", ["ipv4"])
    assert told.value.hint == f"sysctl {limit}"


def test_writes_to_settings_are_heard_and_reads_are_not(monkeypatch, tmp_path):
    for folder in ("ipv4", "core"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "setting").write_text("0")
    monkeypatch.setattr(sysctls, "TOP", str(tmp_path))
    with contextlib.closing(sysctls.Writes()) as writes:
        writes.add("here", ["ipv4", "core", "not/there"])
        assert sysctls.read(["ipv4/setting"]) == {"ipv4/setting": "0"}
        assert writes.seen() == []
        (tmp_path / "ipv4" / "setting").write_text("1")
        assert writes.seen() == [("here", "ipv4/setting")]
        assert writes.seen() == []
