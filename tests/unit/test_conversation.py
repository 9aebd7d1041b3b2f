"""The trace as a conversation: pods by name, legs, time since the app dialled, and totals; on captured lines."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest

import golden_files
import trace_lines
from merbridge_lab.console.conversation import Conversation
from merbridge_lab.console.terminal import Terminal
from merbridge_lab.labs.embedded import trace_filter
from merbridge_lab.merbridge import trace as upstream
from merbridge_lab.trace_event import KnownConnection, TraceContext

CAPTURED = Path(__file__).parents[1] / "captured"
NAMES = {
    "10.244.0.10": "sleep",
    "10.244.0.11": "helloworld-v1",
    "10.244.0.12": "helloworld-v2",
    "10.96.0.10": "helloworld",
}
CONTEXT = TraceContext(NAMES, pairs=True)


def captured(name="trace-3-requests.txt", parse=trace_lines.parse):
    return [event for line in (CAPTURED / name).read_text().splitlines() if (event := parse(line)) is not None]


def events(*said, start=1.0, apart=0.0001, task="wrk:worker_0-7"):
    """Return the events of lines that end in `said`."""
    lines = (
        f"{task} [000] ..... {start + n * apart:.6f}: bpf_trace_printk: [merlab] {text}" for n, text in enumerate(said)
    )
    return [trace_lines.parse(line) for line in lines]  # fmt: skip


@pytest.fixture
def tell(capsys, monkeypatch):
    """Return a function that plays events to a conversation and returns what is printed."""

    def play(heard, context=CONTEXT, *, end=True, unicode=True, color=False, apart=0.0):
        clock = itertools.count()
        monkeypatch.setattr(Terminal, "unicode", property(lambda _: unicode))
        if color:
            monkeypatch.setenv("FORCE_COLOR", "1")
            monkeypatch.delenv("NO_COLOR", raising=False)
            monkeypatch.setenv("TERM", "xterm")
        conversation = Conversation(Terminal(verbosity=0, color=color), context, lambda: next(clock) * apart)
        for event in heard:
            conversation.hear(event)
        if end:
            conversation.end()
        return capsys.readouterr().out

    return play


def test_three_requests(tell):
    printed = tell(captured())
    golden_files.check("trace.txt", printed)
    assert "wrk:" not in printed
    assert "<...>" not in printed
    assert printed.count("dials helloworld:5000") == 3
    assert max(len(line) for line in printed.splitlines() if "by TCP" not in line) <= 80
    body = printed.split("\n\n")
    assert len(body) == 4  # three requests and the totals
    assert all(request.startswith("+0.000  ① sleep's app (curl) dials") for request in body[:3])


def test_without_unicode(tell):
    printed = tell(captured(), unicode=False)
    assert printed.isascii()
    assert "1 sleep's app -> sleep's sidecar: 84 bytes by eBPF" in printed


def test_a_colour_for_each_leg_and_another_only_by_tcp(tell):
    printed = tell(captured(), color=True)
    assert {"\x1b[36m①", "\x1b[32m②", "\x1b[34m③"} <= set(re.findall("\x1b\\[[0-9;]*m[①②③]", printed))
    marked = [line for line in printed.splitlines() if "\x1b[35m" in line]
    assert marked
    assert all("by TCP" in line for line in marked)
    assert not re.search("\x1b\\[[0-9;]*(31|91|4[0-9])m", printed)


def test_the_totals_are_those_of_the_events(tell):
    seen = captured()
    printed = tell(seen)
    for leg, mark in (("outbound", "①"), ("mesh", "②"), ("inbound", "③")):
        pairs = {event.pair for event in seen if event.leg == leg}
        moved = [event.size for event in seen if event.kind == "redirect" and event.pair in pairs]
        line = next(line for line in printed.splitlines() if re.match(f"{mark} (app|sidecar) →", line))
        assert f" {len(pairs)} connection" in line
        assert f" {len(moved)} messages by eBPF ({sum(moved):,} bytes)" in line
    assert "  3 messages by TCP: the other end has left" in printed


def test_nothing_seen(tell):
    assert tell([None, None]).strip() == "no message was seen"


BEFORE = "on connections that were open before the trace began:\n"
DIAL = ("connect pair=1f leg=1", "wanted pair=1f dst=10.96.0.10:5000")


def test_an_event_waits_until_the_pods_are_known(tell):
    assert tell(events(*DIAL), end=False) == ""
    whole = events(*DIAL, "established pair=1f src=10.244.0.10:41000")
    assert "sleep's app (wrk:worker_0) dials helloworld:5000" in tell(whole, end=False)


def test_but_not_for_long(tell):
    silent = [*events(*DIAL), None, None]
    assert tell(silent, end=False, apart=0.01) == "", "a reader may come between two lines of one connect()"
    said = "① an app (wrk:worker_0) dials helloworld:5000; eBPF leads it to its sidecar"
    assert said in tell(silent, end=False, apart=0.3)
    other = [*events(*DIAL), *events("redirect pair=2f side=0 bytes=1")]
    assert tell(other, end=False, apart=0.01) == ""
    assert said in tell(other, end=False, apart=0.6)


def test_the_apps_name_is_the_programs_where_the_kernel_does_not_know_it_yet(tell):
    young = events("connect pair=1f leg=1 comm=my app: 2", *DIAL[1:], task="<...>-7")
    whole = [*young, *events("established pair=1f src=10.244.0.10:41000", task="<...>-7")]
    assert "sleep's app (my app: 2) dials helloworld:5000" in tell(whole)


def test_the_order_stays(tell):
    mixed = events(*DIAL, "redirect pair=2f side=0 bytes=9", "established pair=1f src=10.244.0.10:41000")
    known = replace(CONTEXT, connections=(KnownConnection(0x2F, "inbound", "helloworld-v1", "helloworld-v1"),))
    first, second, *_ = tell(mixed, known).splitlines()
    assert "sleep's app" in first
    assert second == "+0.000  ③ helloworld-v1's sidecar → helloworld-v1's app: 9 bytes by eBPF"


def test_a_connection_from_before_has_its_pods(tell):
    known = replace(CONTEXT, connections=(KnownConnection(0x2F, "mesh", "sleep", "helloworld-v2"),))
    printed = tell(events("redirect pair=2f side=1 bytes=1", "passed pair=2f side=0 reason=15"), known)
    assert printed.startswith(f"{BEFORE}+0.000  ② helloworld-v2's sidecar → sleep's sidecar: 1 byte by eBPF\n")
    assert "② sleep's sidecar → helloworld-v2's sidecar: a message by TCP (the receiver does not keep up" in printed


def test_an_unknown_connection_claims_nothing(tell):
    printed = tell(events("redirect pair=2f side=0 bytes=9"))
    assert printed.startswith(f"{BEFORE}+0.000    one end → the other end: 9 bytes by eBPF\n")


def test_what_was_open_before_is_named_once_and_not_part_of_a_request(tell):
    """The end of an earlier request: its connections close after the trace began."""
    earlier = events("redirect pair=2f side=0 bytes=31", "closed pair=2f side=0", start=0.5)
    dialled = events(*DIAL, "established pair=1f src=10.244.0.10:41000")
    later = events("redirect pair=3f side=0 bytes=7", start=1.2)
    before, request, _ = tell([*earlier, *dialled, *later]).split("\n\n")
    assert before.startswith(BEFORE)
    assert len(before.splitlines()) == 3
    assert request.startswith("+0.000  ① sleep's app (wrk:worker_0) dials helloworld:5000")
    assert BEFORE.strip() not in request


def test_what_comes_from_outside(tell):
    printed = tell(
        events("steered to=10.244.0.11:5000 from=10.244.0.1", "original_dst pair=0 dst=10.244.0.11:5000"), CONTEXT
    )
    assert "10.244.0.1 dials helloworld-v1:5000 from outside; eBPF leads it to the sidecar" in printed
    assert "a sidecar asks where a connection was going: helloworld-v1:5000" in printed


def test_a_servers_pod_shows_both_legs_and_requests_are_apart(tell):
    """U6: `trace --pod helloworld-v2`: no app dials there, so a new connection of a sidecar begins a request."""
    printed = tell(trace_filter.of_pod(captured(), "10.244.0.12"))
    assert "①" not in printed
    assert "helloworld-v1" not in printed
    requests = printed.split("\n\n")
    assert len(requests) == 3  # two requests and the totals
    assert all(each.startswith("+0.000  ② sleep's sidecar dials helloworld-v2:5000") for each in requests[:2])
    assert "③ helloworld-v2's sidecar → helloworld-v2's app: 395 bytes by eBPF" in printed


def test_merbridges_events_keep_their_sentences(tell):
    seen = captured("merbridge/trace-5-requests.txt", upstream.parse)
    printed = tell(seen, TraceContext())
    lines = [line for line in printed.splitlines() if line.startswith("+")]
    assert [line.split("    ", 1)[1] for line in lines] == [event.sentence() for event in seen]
    assert "+0.000    connect() by" in printed
    moved = [event.size for event in seen if event.kind == "redirect"]
    assert f"{len(moved)} messages by eBPF ({sum(moved):,} bytes)" in printed
