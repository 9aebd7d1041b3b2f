"""The settings of a network namespace compared with a new one's, and the list of allowed differences."""

from __future__ import annotations

import pytest

from merbridge_lab.adapters import rare_redirects, sysctls
from merbridge_lab.labs.embedded import sysctl_drift

#: What a new namespace of some kernel has.
NEW = {
    "ipv4/ip_forward": "1",
    "ipv4/conf/all/rp_filter": "2",
    "ipv4/conf/lo/rp_filter": "2",
    "ipv4/conf/default/rp_filter": "2",
    "ipv4/conf/default/fresh_idea": "7",
    "ipv4/conf/lo/fresh_idea": "7",
    "ipv4/neigh/lo/ucast_solicit": "3",
    "ipv4/neigh/lo/locktime": "100",
    "ipv4/route/flush": "EACCES",
    "ipv4/tcp_rmem": "4096 131072 6291456",
    "ipv4/tcp_congestion_control": "cubic",
    "ipv4/tcp_ecn": "2",
    "netfilter/nf_conntrack_count": "0",
}
HEALTHY = NEW | {
    "ipv4/ip_forward": "0",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/lo/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/eth0/rp_filter": "0",
    "ipv4/conf/eth0/fresh_idea": "7",
    "ipv4/neigh/eth0/ucast_solicit": "3",
    "ipv4/neigh/eth0/locktime": "100",
    "netfilter/nf_conntrack_count": "12",
}


class Fresh:
    """The settings of a new namespace; counts how often they were read."""

    def __init__(self, *versions):
        self.versions, self.read = versions, 0

    def __call__(self):
        return self.versions[min(self.read, len(self.versions) - 1)]

    def cache_clear(self):
        self.read += 1


@pytest.fixture
def fresh(monkeypatch):
    def give(*versions):
        made = Fresh(*versions)
        monkeypatch.setattr(sysctls, "of_new_namespace", made)
        return made

    return give


def told(found):
    return sysctl_drift.differing(found, ["eth0"], forward=False)


def test_p8_what_a_new_namespace_has_is_in_order(fresh):
    made = fresh(NEW)
    assert told(HEALTHY) == []
    assert made.read == 0


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("ipv4/tcp_ecn", "1", "ipv4/tcp_ecn is 1, not 2"),
        ("ipv4/conf/eth0/rp_filter", "1", "ipv4/conf/eth0/rp_filter is 1, not 0"),
        ("ipv4/conf/eth0/fresh_idea", "8", "ipv4/conf/eth0/fresh_idea is 8, not 7"),
        ("ipv4/neigh/eth0/locktime", "0", "ipv4/neigh/eth0/locktime is 0, not 100"),
        ("ipv4/a_new_one", "1", "ipv4/a_new_one is 1, not there at all"),
        ("ipv4/tcp_ecn", "", "ipv4/tcp_ecn is empty, not 2"),
    ],
)
def test_p8_any_other_value_is_told(fresh, name, value, sentence):
    fresh(NEW)
    assert told(HEALTHY | {name: value}) == [sentence]


@pytest.mark.parametrize("name", ["ipv4/tcp_ecn", "ipv4/ip_forward", "ipv4/tcp_rmem", "ipv4/conf/lo/fresh_idea"])
def test_p8_what_was_not_read_is_told(fresh, name):
    fresh(NEW)
    assert told({key: value for key, value in HEALTHY.items() if key != name}) == [f"{name} could not be read"]


def test_p8_nothing_read_is_no_pass(fresh):
    fresh({})
    assert "ipv4/ip_forward could not be read" in told({})


def test_p8_the_host_may_change_its_mind_or_load_a_module(fresh):
    """A new namespace is read again before anything is reported as wrong."""
    changed = {"ipv4/tcp_ecn": "1", "ipv4/a_new_one": "1"}
    made = fresh(NEW, NEW | changed)
    assert told(HEALTHY | changed) == []
    assert made.read == 1


def test_p8_settings_of_other_links_are_the_links_business(fresh):
    fresh(NEW)
    assert told(HEALTHY | {"ipv4/conf/tunl0/rp_filter": "2", "ipv6/neigh/tunl0/locktime": "9"}) == []


#: Allowed differences: setting → an allowed value, and values that hide behind it and are reported.
BEHIND = {
    "a count of connections": ("netfilter/nf_conntrack_count", "3", ["EACCES"]),
    "room for TCP": ("ipv4/tcp_rmem", "4096 87380 33554432", ["1 1 1", "4096 16384 20000", "4096", "a b c"]),
    "the control of congestion": ("ipv4/tcp_congestion_control", "bbr", ["bpf_dropper", "bpf_cubic", ""]),
    "how neighbours are asked for": ("ipv4/neigh/eth0/ucast_solicit", "3", ["0", "100"]),
}


def test_behind_each_setting_that_may_differ_something_is_told(fresh):
    """P4: an entry of the list is no hiding place."""
    assert {each.name for each in sysctl_drift.MAY_DIFFER} == {*BEHIND}
    assert all(each.reason for each in sysctl_drift.MAY_DIFFER)
    for name, good, bad in BEHIND.values():
        fresh(NEW | {"ipv4/neigh/lo/ucast_solicit": "5"})
        assert told(HEALTHY | {name: good}) == []
        for value in bad:
            assert [each.partition(" ")[0] for each in told(HEALTHY | {name: value})] == [name]


def test_p8_services_of_ipvs_are_told_with_their_servers():
    text = (
        "IP Virtual Server version 1.2.1 (size=4096)\n"
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
    )
    assert rare_redirects.read_ipvs(text) == []
    services = "TCP  0A60000A:1388 rr  \n  -> 0AF4000C:1388      Masq    1      0          0         \n"
    assert rare_redirects.read_ipvs(text + services) == ["TCP 0A60000A:1388 to 0AF4000C:1388"]


@pytest.mark.parametrize(
    ("line", "covered"),
    [
        ("40 25 0:21 /sys /proc/sys ro,nosuid - proc proc rw", None),
        ("40 25 0:21 /sys/net /proc/sys/net rw - proc proc rw", None),
        ("40 25 0:44 / /proc/sys/net/ipv4/conf rw - tmpfs none rw", "/proc/sys/net/ipv4/conf"),
        ("40 25 0:21 /sys/kernel/shmmni /proc/sys/net/ipv4/tcp_ecn rw - proc proc rw", "/proc/sys/net/ipv4/tcp_ecn"),
        ("40 25 0:30 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw", None),
        ("40 25 0:30 / /run/proc/sys rw - tmpfs none rw", None),
    ],
)
def test_p8_settings_are_not_read_through_a_cover(line, covered):
    assert sysctls._covered(f"25 1 0:21 / /proc rw - proc proc rw\n{line}\n") == covered
