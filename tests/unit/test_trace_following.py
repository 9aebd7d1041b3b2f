"""Upstream's trace under other tracer options (c11), and what `trace --pod` and `trace --nonce` keep of it (U6)."""

# ruff: noqa: E501 - lines as the kernel writes them

from __future__ import annotations

import pytest

import trace_lines
from merbridge_lab.dataplane import trace
from merbridge_lab.labs.embedded import trace_filter
from merbridge_lab.merbridge import printk
from merbridge_lab.merbridge import trace as upstream

SAID = "[debug] redirect 91 bytes with eBPF successfully"


@pytest.mark.parametrize(
    ("line", "comm", "pid", "seconds"),
    [
        (f"            curl-4242    [001] ...11  1000.000001: bpf_trace_printk: {SAID}", "curl", 4242, 1000.000001),
        (f"            curl-4242    (   4242) [001] ...11  1000.000001: bpf_trace_printk: {SAID}", "curl", 4242, 1000.000001),
        (f"    wrk:worker_1-4300    (-------) [000] ...11  1000.000002: bpf_trace_printk: {SAID}", "wrk:worker_1", 4300, 1000.000002),
        (f"            curl-4242    (4194304) [001]  1000.000001: bpf_trace_printk: {SAID}", "curl", 4242, 1000.000001),
        (f"            curl-4242    [001]  1000.000001: bpf_trace_printk: {SAID}", "curl", 4242, 1000.000001),
        (f"            curl-4194303 [127] d..31 99999999.000001: bpf_trace_printk: {SAID}", "curl", 4194303, 99999999.000001),
        (f"           <...>-31      [000] .N.11     1.000001: 0: {SAID}", "<...>", 31, 1.000001),
        (f"          <idle>-0       [000] ..s.1     1.000001: 0x00000001: {SAID}", "<idle>", 0, 1.000001),
        (f" a (b) c:-1 [0]-77      (     77) [000] .....     1.5: bpf_trace_printk: {SAID}", "a (b) c:-1 [0]", 77, 1.5),
        (f"   x-9 (-------)-12      (-------) [000]     1.5: bpf_trace_printk: {SAID}", "x-9 (-------)", 12, 1.5),
        (f"            curl-4242    [001] ...11  1000000001: bpf_trace_printk: {SAID}", "curl", 4242, 1000000001),
        (f"    curl-4242      1...1. 1500000us : bpf_trace_printk: {SAID}", "curl", 4242, 1.5),
        (f"  <idle>-0       (-------) 0d.s2. 2500000us!: bpf_trace_printk: {SAID}", "<idle>", 0, 2.5),
    ],
)  # fmt: skip
def test_c11_a_line_is_decoded_whatever_its_columns(line, comm, pid, seconds):
    told = printk.split(line)
    assert told == printk.Line(comm, pid, seconds, SAID)
    event = upstream.parse(line)
    assert event is not None
    assert (event.kind, event.size, event.comm, event.pid) == ("redirect", 91, comm, pid)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "CPU:1 [LOST 12 EVENTS]",
        "curl-4242 [001] ...11 1000.1: sched_switch: prev_comm=curl",
        "curl-4242 [001] ...11 1000.1: other: [debug] redirect 91 bytes with eBPF successfully",
    ],
)
def test_lines_of_other_events_are_none(line):
    assert upstream.parse(line) is None


# -- following ---------------------------------------------------------------------------------------------------------


def request(pair, start, *, sleep="10.244.0.10", server="10.244.0.11"):
    """Return one request: three connections, each with its lines, as the kernel prints them."""
    lines, at = [], start
    for number, (leg, source, accepted) in enumerate(
        [(1, f"{sleep}:41000", "127.0.0.1:15001"), (2, f"{sleep}:42000", f"{server}:15006"), (3, "127.0.0.6:43000", f"{server}:5000")]
    ):  # fmt: skip
        one = f"{pair + number:x}"
        for said in (
            f"connect pair={one} leg={leg}", f"wanted pair={one} dst=10.96.0.10:5000",
            f"established pair={one} src={source}", f"accepted pair={one} at={accepted}",
            f"redirect pair={one} side=0 bytes=10", f"closed pair={one} side=0",
        ):  # fmt: skip
            at += 0.0001
            lines.append(f"curl-1 [000] ..... {at:.6f}: bpf_trace_printk: [merlab] {said}")
    return [trace_lines.parse(line) for line in lines]


def of_pod(found, address):
    return [event for event in trace_filter.of_pod(found, address) if event is not None]


def test_u6_a_servers_pod_shows_what_its_sidecar_dials_and_accepts():
    seen = request(0x10, 1.0)
    told = of_pod([*seen, None], "10.244.0.11")
    assert {event.pair for event in told} == {0x11, 0x12}
    assert [event.kind for event in told if event.pair == 0x12] == [
        "connect", "wanted", "established", "accepted", "redirect", "closed",
    ]  # fmt: skip
    assert told == [event for event in seen if event.pair in (0x11, 0x12)]


def test_u6_a_clients_pod_shows_its_own_and_no_others():
    mine, other = request(0x10, 1.0), request(0x20, 1.00005, sleep="10.244.0.77", server="10.244.0.12")
    mixed = sorted([*mine, *other], key=lambda event: event.seconds)
    told = of_pod([*mixed, None], "10.244.0.10")
    assert {event.pair for event in told} == {0x10, 0x11}
    assert told == sorted(told, key=lambda event: event.seconds)


def test_lost_events_are_said_to_whoever_follows_a_pod_or_a_request():
    loss = trace.lost(7, 1.2)
    assert loss in of_pod([*request(0x10, 1.0), loss, None], "10.244.0.12")
    told = trace_filter.of_request([loss, None], lambda: (set(), False), now=lambda: 1.0)
    assert loss in list(told)


def test_what_is_steered_to_a_pod_is_its_own():
    line = "x-1 [000] ..... 1.0: bpf_trace_printk: [merlab] steered to=10.244.0.11:5000 from=10.244.1.200"
    event = trace_lines.parse(line)
    assert of_pod([event, None], "10.244.0.11") == [event]
    assert of_pod([event, None], "10.244.0.12") == []


def test_u6_the_events_of_a_request_come_in_order_although_its_records_do_not():
    """The server's sidecar writes its record before the client's: nothing is printed before both are there."""
    seen = request(0x10, 1.0)
    late = request(0x30, 1.5)
    known = [(set(), False), ({"10.244.0.10:42000", "127.0.0.6:43000"}, False)]
    known += [({"10.244.0.10:41000", "10.244.0.10:42000", "127.0.0.6:43000"}, True)] * 9
    clock = iter(range(1, 10_000))
    answers = iter(known)
    told = trace_filter.of_request(
        [*seen, None, None, None, late[0], None], lambda: next(answers, known[-1]), now=lambda: next(clock) * 1e-6
    )
    assert [event for event in told if event is not None] == seen


def test_a_request_whose_other_record_never_comes_is_told_all_the_same():
    seen = request(0x10, 1.0)
    clock = iter(range(1, 10_000))
    told = trace_filter.of_request(
        [*seen, *[None] * 9], lambda: ({"10.244.0.10:41000"}, False), now=lambda: float(next(clock))
    )
    assert {event.pair for event in told if event is not None} == {0x10}
