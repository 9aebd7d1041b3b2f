"""The decoder of trace lines, on lines captured from a real request (Linux 6.18)."""

from types import SimpleNamespace

import trace_lines
from merbridge_lab.checks import trace as checks_trace
from merbridge_lab.dataplane import abi, evidence, trace

LINES = """\
          python-28240   [001] ...11  1901.295181: bpf_trace_printk: [merlab] connect pair=1006 leg=1
          python-28240   [001] ...11  1901.295183: bpf_trace_printk: [merlab] wanted pair=1006 dst=10.99.7.12:5000
          python-28240   [001] ...11  1901.295278: bpf_trace_printk: [merlab] established pair=1006 src=10.99.7.11:41166
          python-28240   [001] ..s31  1901.295427: bpf_trace_printk: [merlab] accepted pair=1006 at=127.0.0.1:15001
          python-28409   [001] ...11  1901.295751: bpf_trace_printk: [merlab] original_dst pair=1006 dst=10.99.7.12:5000
          python-28409   [001] ...11  1901.295778: bpf_trace_printk: [merlab] connect pair=1008 leg=2
          python-28409   [001] ...11  1901.295779: bpf_trace_printk: [merlab] wanted pair=1008 dst=10.99.7.12:5000
          python-28409   [001] ...11  1901.295855: bpf_trace_printk: [merlab] established pair=1008 src=10.99.7.11:54086
          python-28409   [001] ..s31  1901.295867: bpf_trace_printk: [merlab] accepted pair=1008 at=10.99.7.12:15006
          python-28411   [000] ...11  1901.296173: bpf_trace_printk: [merlab] original_dst pair=1008 dst=10.99.7.12:5000
          python-28411   [000] ...11  1901.296195: bpf_trace_printk: [merlab] connect pair=12 leg=3
          python-28411   [000] ...11  1901.296196: bpf_trace_printk: [merlab] wanted pair=12 dst=10.99.7.12:5000
          python-28411   [000] ...11  1901.296275: bpf_trace_printk: [merlab] established pair=12 src=127.0.0.6:41947
          python-28411   [000] ..s31  1901.296285: bpf_trace_printk: [merlab] accepted pair=12 at=10.99.7.12:5000
          python-28199   [001] ...11  1901.296353: bpf_trace_printk: [merlab] redirect pair=1006 side=0 bytes=5
          python-28409   [001] ...11  1901.296372: bpf_trace_printk: [merlab] redirect pair=1008 side=0 bytes=5
          python-28411   [000] ...11  1901.296431: bpf_trace_printk: [merlab] redirect pair=12 side=0 bytes=5
          python-28199   [001] ...11  1901.296462: bpf_trace_printk: [merlab] redirect pair=12 side=1 bytes=5
          python-28412   [000] ...11  1901.296496: bpf_trace_printk: [merlab] redirect pair=1008 side=1 bytes=5
          python-28410   [001] ...11  1901.296519: bpf_trace_printk: [merlab] redirect pair=1006 side=1 bytes=5
          python-28199   [000] ..s31  1901.296690: bpf_trace_printk: [merlab] closed pair=12 side=0
          python-28199   [000] ...11  1901.296700: bpf_trace_printk: [merlab] closed pair=12 side=1
          python-28412   [001] .Ns31  1901.296716: bpf_trace_printk: [merlab] closed pair=1008 side=0
          python-28412   [001] .N.11  1901.296723: bpf_trace_printk: [merlab] closed pair=1008 side=1
          python-28410   [001] ..s31  1901.296737: bpf_trace_printk: [merlab] closed pair=1006 side=0
          python-28410   [001] ...11  1901.296742: bpf_trace_printk: [merlab] closed pair=1006 side=1
          python-28238   [000] ..s21  1901.296863: bpf_trace_printk: [merlab] steered to=10.99.7.12:5000 from=10.99.7.1
          python-28413   [001] ...11  1901.297055: bpf_trace_printk: [merlab] original_dst pair=0 dst=10.99.7.12:5000
"""


def decoded():
    return [event for line in LINES.splitlines() if (event := trace_lines.parse(line))]


def test_every_captured_line_is_decoded():
    assert len(decoded()) == len(LINES.splitlines())
    # The lines of today: no columns of the kernel, and names instead of numbers.
    assert decoded()[0].raw == "          python-28240   1901.295181: connect pair=1006 leg=outbound"
    assert decoded()[0].short == "python-28240 … connect pair=1006 leg=outbound"
    assert [event.raw.partition(": ")[2] for event in decoded()][1:] == [
        line.partition("[merlab] ")[2] for line in LINES.splitlines() if " leg=" not in line
    ][:1] + [
        line.partition("[merlab] ")[2].replace("leg=2", "leg=mesh").replace("leg=3", "leg=inbound")
        for line in LINES.splitlines()[2:]
    ]


def test_one_request_can_be_followed():
    port = next(event.port for event in decoded() if event.kind == "established" and event.ip == "10.99.7.11")
    (pair,) = {event.pair for event in decoded() if event.kind == "established" and event.port == port}
    told = [event for event in decoded() if event.pair == pair]
    kinds = ["connect", "wanted", "established", "accepted", "original_dst", "redirect", "redirect"]
    assert [event.kind for event in told][: len(kinds)] == kinds
    by_kind = {event.kind: event for event in told}
    assert by_kind["connect"].leg == "outbound"
    assert (by_kind["wanted"].ip, by_kind["wanted"].port) == ("10.99.7.12", 5000)
    assert (by_kind["accepted"].ip, by_kind["accepted"].port) == ("127.0.0.1", 15001)
    assert [(event.side, event.size) for event in told if event.kind == "redirect"] == [(0, 5), (1, 5)]


def test_sentences():
    said = {event.kind: event.sentence() for event in decoded()}
    assert said["original_dst"].endswith("10.99.7.12:5000")
    assert said["steered"] == (
        "a connection from 10.99.7.1 to 10.99.7.12:5000 is steered to the inbound listener of the sidecar"
    )
    assert "bytes moved from socket to socket, sent by the side that" in said["redirect"]


def test_a_passed_message_has_its_reason():
    line = " curl with blank-77 [001] ...11  12.5: 0x1: [merlab] passed pair=1f side=1 reason=15"
    event = trace_lines.parse(line)
    assert (event.comm, event.pid, event.pair, event.side, event.reason) == (
        "curl with blank",
        77,
        31,
        1,
        "receiver_full",
    )
    assert event.sentence().startswith(
        "a message sent by the side that accepted of connection 1f goes by TCP: the receiver"
    )


def test_a_record_of_a_kind_that_is_not_known_is_told_all_the_same():
    event = trace.decode(abi.layouts()["event"].pack(kind=99, pair=31, comm=b"curl", pid=7, nanoseconds=1_500_000_000))
    assert (event.kind, event.comm, event.pid, event.seconds) == ("99", "curl", 7, 1.5)
    assert event.sentence() == "99 (connection 1f)"
    assert event.raw == "            curl-7       1.500000: 99"


def test_lost_events_are_said():
    event = trace.lost(12, 2.0)
    assert event.sentence() == "12 events were lost: they came faster than they were read"
    assert (event.pair, event.raw) == (0, "          merlab-0       2.000000: lost events=12")


def test_a_record_has_the_layout_of_the_header_and_no_hole():
    """A hole on a program's stack would be refused: it is never written."""
    layout = abi.layouts()["event"]
    assert layout.size == 72 == 8 + 8 + 10 * 4 + 16
    assert layout.offset("comm") == layout.size - 16
    assert abi.event_kinds() == (
        "connect", "wanted", "established", "accepted", "original_dst", "redirect", "passed", "steered", "closed",
    )  # fmt: skip


def test_a_loss_is_no_line_of_a_request():
    """That events were lost shows that programs wrote, but not of which connection."""
    lost = SimpleNamespace(trace=(trace.lost(5, 1.0),), client="sleep")
    assert not checks_trace.assess_lines(lost).held


def test_what_is_missing_may_be_among_what_was_lost():
    seen = decoded()
    exchange = next(event for event in seen if event.kind == "established")
    asked = SimpleNamespace(local=f"{exchange.ip}:{exchange.port}")
    partly = [event for event in seen if event.kind != "redirect"]
    leg = SimpleNamespace(not_served="")
    assert "events of the trace" not in evidence._told_of(asked, partly, leg).unknown
    assert evidence._told_of(asked, [*partly, trace.lost(9, 9.0)], leg).unknown.startswith("9 events of the trace were")
    assert not evidence._told_of(asked, [*seen, trace.lost(9, 9.0)], leg).unknown
