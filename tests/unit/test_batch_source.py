"""One batch in a lab on a cluster: from its requests, logs, run counts, map and trace to what the checks say of it.

The pods are in memory; the lines are those of real logs and of upstream's trace.
"""

from types import SimpleNamespace

import pytest

from fake_lab import FakeLab, up
from merbridge_lab.checks import dataplane, mesh, trace
from merbridge_lab.evidence import Unread
from merbridge_lab.labs import request_batch
from merbridge_lab.labs.dataplane_strategy import NoEvidence
from merbridge_lab.labs.kubernetes.batch_source import ClusterBatch
from merbridge_lab.labs.kubernetes.dataplanes import node_trace
from merbridge_lab.labs.kubernetes.dataplanes.merbridge import evidence
from merbridge_lab.merbridge import kernel_objects

VIP = "10.96.0.10"
LINE = "            curl-{pid}    [001] ...11  4520.123456: bpf_trace_printk: [debug] {said}"
MOVED = "redirect 91 bytes with eBPF successfully"


class Pod:
    """A workload of the cluster over one of the lab in memory: its log is what is added from now on."""

    def __init__(self, lab, name):
        self.lab, self.name = lab, name
        self.rules = lab.workload(name).rules

    def ask(self, _url):
        seen = self.lab.observe(self.lab.workload(self.name), count=1)
        self.lines = [*getattr(self, "lines", []), *seen.client_log.values()]
        for name, line in seen.server_log.values():
            self.lab.delivered.setdefault(name, []).append(line)
        (exchange,) = seen.exchanges
        return type(exchange)(**{**vars(exchange), "remote": "127.128.0.7:5000"})

    def log(self):
        return SimpleNamespace(lines=lambda: tuple(getattr(self, "lines", self.lab.delivered.get(self.name, ()))))

    def changed_sources(self):
        return {}


@pytest.fixture
def batch():
    lab = up(FakeLab())
    lab.delivered = {}
    servers = [Pod(lab, "helloworld-v1"), Pod(lab, "helloworld-v2")]
    return lambda shown: request_batch.observe(ClusterBatch(Pod(lab, "sleep"), servers, "url", shown), count=4)


@pytest.fixture
def watch(monkeypatch):
    """Return a watch of a node whose programs ran, and whose map holds every connection."""
    runs = iter([{"connect4_runs": 3, "sk_msg_runs": 10}, {"connect4_runs": 12, "sk_msg_runs": 34}])
    monkeypatch.setattr(kernel_objects, "runs", lambda _state: next(runs))
    monkeypatch.setattr(kernel_objects, "wanted", lambda _state, _source, _dialled: f"{VIP}:5000")
    monkeypatch.setattr(node_trace, "is_elsewhere", lambda pid, own: (pid, own) != (7, "/node"))
    buffers = iter([[LINE.format(pid=7, said="of an earlier request")]])
    told = [f"call from user container: cookie: 77, ip: {ip}, port: 5000" for ip in (VIP, "10.96.9.9")]
    later = [LINE.format(pid=7, said=said) for said in (*told, *[MOVED] * 24)]

    def make(limits=None, lines=later):
        place = SimpleNamespace(cgroup_path="/node")
        return evidence.Watch(place, None, lambda: next(buffers, lines), limits or {}, lambda: frozenset({VIP}))

    return make


def test_upstreams_readings_around_a_batch_hold(batch, watch):
    seen = batch(watch())
    assert mesh.assess_both_sidecars(seen).held
    intercepted = dataplane.assess_intercepted(seen)
    assert (intercepted.held, intercepted.evidence[0].source) == (True, "bpf:pair_original_dst/sleep/outbound")
    moved = dataplane.assess_payload(seen)
    assert moved.why == "24 messages, 2184 bytes, moved from socket to socket on all three legs"
    assert [each.source for each in moved.evidence] == [
        "bpf:pair_original_dst/sleep/outbound",
        "bpf:pair_original_dst/sleep/mesh",
        "bpf:pair_original_dst/sleep/inbound",
        "bpf:node/sk_msg_runs",
        "trace:node/redirect",
    ]
    assert trace.assess_told(seen).held
    assert {event.ip for event in seen.trace if event.kind == "connect"} == {VIP}, "the others dialled elsewhere"
    assert seen.by_tcp is None


def test_without_debug_the_run_counts_are_what_is_said(batch, watch):
    found = dataplane.assess_payload(batch(watch(lines=[], limits={"inbound": "the reason"})))
    assert found.why == (
        "24 messages handed to the program that moves them, on the outbound and mesh legs; not on the inbound leg:"
        " the reason"
    )


def test_a_map_that_cannot_be_read_is_said(batch, watch, monkeypatch):
    monkeypatch.setattr(kernel_objects, "runs", lambda _state: (_ for _ in ()).throw(OSError(1, "not permitted")))
    seen = batch(watch())
    assert dataplane.assess_intercepted(seen).held, "the map alone tells"
    assert isinstance(seen.interception.moved, Unread)
    assert "bpf:counters could not be read" in dataplane.payload_moved().evaluate(seen).why


def test_a_dataplane_that_is_not_there_shows_nothing(batch):
    seen = batch(NoEvidence())
    assert dataplane.assess_intercepted(seen).why == "eBPF intercepted 0 of 4 fresh connections of sleep"
    assert seen.trace == ()
