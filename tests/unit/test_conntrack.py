"""Source ports that conntrack changes: parsed from its output, and followed from the sender to the receiver."""

from dataclasses import replace

from fake_lab import FakeLab, up
from merbridge_lab.adapters.conntrack import merge, read_changed_sources
from merbridge_lab.checks import mesh
from merbridge_lab.observation import arrivals

# Captured from Linux 6.18: one source port to two destinations that a rule redirects to one listener.
PROCFS = """\
ipv4     2 tcp      6 119 TIME_WAIT src=127.0.0.1 dst=127.0.0.1 sport=45000 dport=88 src=127.0.0.1 dst=127.0.0.1 \
sport=88 dport=45000 [ASSURED] mark=0 zone=0 use=2
ipv4     2 tcp      6 120 TIME_WAIT src=127.0.0.1 dst=127.0.0.9 sport=45000 dport=99 src=127.0.0.1 dst=127.0.0.1 \
sport=88 dport=8037 [ASSURED] mark=0 zone=0 use=2
ipv4     2 udp      17 29 src=127.0.0.1 dst=127.0.0.9 sport=53 dport=53 src=127.0.0.1 dst=127.0.0.1 \
sport=53 dport=9 [ASSURED] mark=0 zone=0 use=2
"""
# The same as conntrack(8) prints it, and a connection that nobody has answered yet.
TOOL = """\
tcp      6 119 TIME_WAIT src=127.0.0.1 dst=127.0.0.9 sport=45000 dport=99 src=127.0.0.1 dst=127.0.0.1 \
sport=88 dport=8037 [ASSURED] mark=0 use=1
tcp      6 118 SYN_SENT src=10.244.0.5 dst=10.96.0.1 sport=39000 dport=443 [UNREPLIED] src=10.89.0.2 dst=10.244.0.5 \
sport=6443 dport=1025 mark=0 use=1
"""


def test_only_what_was_changed_is_told():
    assert read_changed_sources(PROCFS) == {"127.0.0.1:45000": frozenset({"127.0.0.1:8037"})}


def test_the_tool_tells_the_same():
    assert read_changed_sources(TOOL) == {
        "127.0.0.1:45000": frozenset({"127.0.0.1:8037"}),
        "10.244.0.5:39000": frozenset({"10.244.0.5:1025"}),
    }


def test_nothing_was_told():
    assert read_changed_sources("") == {}


def test_a_connection_is_followed_through_several_namespaces():
    changed = merge([{"a:1": frozenset({"a:2"})}, {"a:2": frozenset({"a:3"}), "a:1": frozenset({"a:9"})}])
    assert arrivals("a:1", changed) == {"a:1", "a:2", "a:3", "a:9"}
    assert arrivals("a:3", changed) == {"a:3"}
    assert arrivals("a:1", {"a:1": frozenset({"a:1"})}) == {"a:1"}


def test_a_record_may_name_the_port_that_conntrack_gave():
    lab = up(FakeLab())
    seen = lab.observe(lab.workload("sleep"))
    first = seen.exchanges[0]
    line = replace(seen.client_log[first.nonce], downstream_remote="10.244.0.10:1")
    changed = replace(seen, client_log={**seen.client_log, first.nonce: line})
    assert not mesh.assess_both_sidecars(changed).held
    assert mesh.assess_both_sidecars(replace(changed, changed_sources={first.local: frozenset({"10.244.0.10:1"})})).held
