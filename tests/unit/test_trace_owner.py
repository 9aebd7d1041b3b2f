"""The lines of one lab in a trace that has those of two, with the same addresses."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from merbridge_lab.dataplane import owned_events, trace
from merbridge_lab.labs.embedded import trace_owner

MINE, OTHERS, ENDED = 100, 200, 300


def is_own(pid):
    return {MINE: True, OTHERS: False}.get(pid)


def lines(pair, sidecar, start):
    """Return the lines of a connection that an app dialled which has ended since; its sidecar runs."""
    at, found = start, []
    for pid, said in (
        (ENDED, f"connect pair={pair:x} leg=1 comm=curl"),
        (ENDED, f"wanted pair={pair:x} dst=10.96.0.10:5000"),
        (ENDED, f"established pair={pair:x} src=10.244.0.10:41000"),
        (1, f"accepted pair={pair:x} at=127.0.0.1:15001"),
        (sidecar, f"original_dst pair={pair:x} dst=10.96.0.10:5000"),
        (ENDED, f"redirect pair={pair:x} side=0 bytes=84"),
        (1, f"closed pair={pair:x} side=0"),
    ):
        at += 0.0001
        found.append(trace.parse(f"curl-{pid} [000] ..... {at:.6f}: bpf_trace_printk: [merlab] {said}"))
    return found


def kept(events):
    return list(owned_events.of_lab(events, is_own))


def test_of_two_labs_only_the_own_lines_stay_and_in_order():
    mine, others = lines(0x10, MINE, 1.0), lines(0x20, OTHERS, 1.00005)
    mixed = sorted([*mine, *others], key=lambda event: event.seconds)
    assert kept(mixed) == mine
    assert kept([*mixed, None]) == [*mine, None]


def test_a_connection_that_no_task_tells_of_is_kept():
    unknown = [replace(event, pid=ENDED) for event in lines(0x10, MINE, 1.0)]
    assert kept([*unknown, None]) == [*unknown, None]
    later = lines(0x30, MINE, 9.0)
    assert kept([*unknown, *later]) == [*unknown, *later]


def test_what_waits_is_kept_when_it_waited_long_enough():
    first = lines(0x10, MINE, 1.0)[:1]
    told = owned_events.of_lab(iter([*first, *lines(0x20, OTHERS, 5.0)]), is_own)
    assert next(told) == first[0]


def test_a_line_without_a_connection_belongs_to_its_task():
    steered = trace.parse("x-200 [000] ..... 1.0: bpf_trace_printk: [merlab] steered to=10.0.0.1:5000 from=10.0.0.2")
    asked = trace.parse("x-200 [000] ..... 1.0: bpf_trace_printk: [merlab] original_dst dst=10.0.0.1:5000")
    assert kept([steered, asked]) == [steered]


def test_a_task_is_found_by_its_cgroup(monkeypatch):
    places = {1: "/merlab/mesh/sleep/app", 2: "/merlab-2/mesh/sleep/app", 3: "/merlab/twins/sleep-twin/app", 4: ""}
    monkeypatch.setattr(owned_events.cgroup, "of", places.get)
    monkeypatch.setattr(owned_events, "_FIRST_PIDS", Path("/proc/self/ns/pid").stat().st_ino)
    tell = trace_owner.own_tasks("merlab")
    assert [tell(pid) for pid in places] == [True, False, False, None]


def test_with_pids_of_its_own_merlab_leaves_out_nothing(monkeypatch):
    monkeypatch.setattr(owned_events, "_FIRST_PIDS", 1)
    assert trace_owner.own_tasks("merlab")(os.getpid()) is None
