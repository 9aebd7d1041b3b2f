"""tests/apps: a run is judged by what is known, and nothing that was not seen passes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tests.apps import catalogue, known, lab_command, place, report
from tests.apps.cells import Cell, Result, Row
from tests.apps.place import Witness

OK, WRONG, STALLED = Cell("ok", connections=1), Cell("wrong", "other bytes"), Cell("stalled")
KNOWN = {("nginx", "burst"): known.ALWAYS, ("nginx", "1MB-up"): known.SOMETIMES}
MOVED = {"rules": Witness(redirect_rule=7), "ebpf": Witness(intercepted=3, mesh_bytes=5)}
BY_BOTH = "by the rules: connections were intercepted, or bytes redirected, by eBPF"


def row(rules: dict[str, Cell], ebpf: dict[str, Cell], error: str = "") -> Row:
    results = {"rules": Result(dict(rules), connections=3), "ebpf": Result(dict(ebpf), connections=3, error=error)}
    return Row("nginx", results)


def test_a_cell_is_worse_only_if_its_reference_is_right():
    seen = row({"burst": OK, "fresh": WRONG, "1MB-up": OK}, {"burst": STALLED, "fresh": WRONG, "1MB-up": OK})
    assert seen.worse() == {"burst": "stalled"}
    assert row({"burst": STALLED}, {"burst": OK}).worse() == {}


@pytest.mark.parametrize(
    ("cells", "new", "better", "held"),
    [
        ({"burst": STALLED, "1MB-up": OK}, [], [], True),
        ({"burst": STALLED, "1MB-up": WRONG}, [], [], True),
        ({"burst": STALLED, "fresh": WRONG}, [("nginx", "fresh", "wrong: other bytes")], [], False),
        ({"burst": OK, "1MB-up": WRONG}, [], [("nginx", "burst")], False),
        ({"1MB-up": WRONG}, [], [], True),  # what did not run is neither
    ],
)
def test_a_run_must_agree_with_what_is_known(cells, new, better, held):
    verdict = known.judge([row(dict.fromkeys(("burst", "1MB-up", "fresh"), OK), cells)], KNOWN)
    assert (verdict.new, verdict.better, verdict.held) == (new, better, held)


def test_a_cell_right_by_ebpf_whose_reference_is_wrong_is_not_called_better():
    assert known.judge([row({"burst": STALLED}, {"burst": OK})], KNOWN).better == []


def test_what_was_worse_in_each_round_is_told_from_what_was_in_some():
    both, one = row({"burst": OK, "fresh": OK}, {"burst": WRONG, "fresh": WRONG}), row({"burst": OK}, {"burst": WRONG})
    assert known.learn([[both], [one]]) == {("nginx", "burst"): "always", ("nginx", "fresh"): "sometimes"}


def test_the_counters_of_two_proper_labs_prove_the_run():
    assert place.unproved([row({"burst": OK}, {"burst": OK})], MOVED) == []


@pytest.mark.parametrize(
    ("moved", "told"),
    [
        ({"rules": Witness(redirect_rule=2)}, "by the rules: ISTIO_REDIRECT counted 2 of 3"),
        ({"rules": Witness(redirect_rule=7, mesh_bytes=1)}, BY_BOTH),
        ({"rules": Witness(redirect_rule=7, intercepted=1)}, BY_BOTH),
        ({"ebpf": Witness(1, 3, mesh_bytes=5)}, "by eBPF: ISTIO_REDIRECT counted 1 connections"),
        ({"ebpf": Witness(intercepted=2, mesh_bytes=5)}, "by eBPF: 2 of 3 connections were intercepted"),
        ({"ebpf": Witness(intercepted=3)}, "by eBPF: no byte was redirected between sidecars"),
    ],
)
def test_a_lab_that_is_not_what_it_is_called_is_told(moved, told):
    assert place.unproved([row({"burst": OK}, {"burst": OK})], MOVED | moved) == [told]


def test_an_app_that_could_not_be_seen_fails_the_run():
    unproved = place.unproved([row({"burst": OK}, {}, error="does not listen")], MOVED)
    assert unproved == ["nginx by ebpf: does not listen"]
    assert not known.judge([], {}, unproved).held


def test_a_stall_in_one_lab_alone_is_tried_again():
    seen = row({"burst": OK, "fresh": STALLED, "1MB-up": OK}, {"burst": STALLED, "fresh": STALLED, "1MB-up": WRONG})
    assert seen.stalled() == ["burst"]
    seen.results["ebpf"].replace(Result({"burst": OK, catalogue.LAST: WRONG}))
    assert seen.results["ebpf"].cells == {"burst": OK, "fresh": STALLED, "1MB-up": WRONG}


@pytest.mark.parametrize("profile", known.PROFILES)
def test_known_cells_are_cells_that_there_are(profile):
    there = {(app.name, case) for app in catalogue.APPS for case in (*app.cases, catalogue.LAST)}
    assert set(known.read(profile)) - there == set()
    assert set(known.read(profile).values()) <= {known.ALWAYS, known.SOMETIMES}


@pytest.mark.parametrize("profile", known.PROFILES)
def test_the_document_names_the_known_cells(profile):
    assert f"<!-- apps: {profile} -->\n{known.markdown(profile)}<!-- end -->\n" in known.DOCUMENT.read_text()


def test_each_app_has_a_name_and_a_service_of_its_own():
    names = [app.name for app in catalogue.APPS]
    places = [catalogue.place(app) for app in catalogue.APPS]
    assert len({*names}) == len(names)
    assert len({*places}) == len(places)
    protocols = {app.name: lab_command.services()[catalogue.place(app)].protocol for app in catalogue.APPS}
    assert {name for name, protocol in protocols.items() if protocol == "http"} == {
        app.name for app in catalogue.APPS if app.route
    }


def test_the_choice_is_of_apps_and_cases_that_there_are():
    assert {app.name for app in catalogue.APPS if app.quick} == {*catalogue.QUICK}
    kinds = {"streams": {"headers"}, "web": set(), "program": set()}
    for app in catalogue.APPS:
        assert set(catalogue.QUICK.get(app.name, ())) - {*app.quick} <= kinds[app.talk]


@pytest.mark.parametrize(
    ("release", "safe"),
    [
        ("6.18.44-fc", True),
        ("6.1.158-1", False),
        ("6.1.159", True),
        ("6.12.75", False),
        ("5.15.0", False),
        ("7.0.1", True),
    ],
)
def test_mptcp_listeners_are_kept_from_kernels_that_may_crash(release, safe):
    assert catalogue.is_mptcp_safe(release) == safe


def test_the_table_shows_both_and_says_what_is_new():
    rows = [row({"burst": OK, "fresh": OK}, {"burst": STALLED, "fresh": WRONG})]
    verdict = known.judge(rows, KNOWN, ["a lab is not what it is called"])
    out = io.StringIO()
    report.show(Console(file=out, width=120), rows, verdict, 3)
    shown = out.getvalue()
    assert "✔…" in shown
    assert "worse (known): nginx · burst: stalled" in shown
    assert "worse (NEW): nginx · fresh: wrong: other bytes" in shown
    assert "not proved: a lab is not what it is called" in shown
    told = report.told(rows, verdict, 3)
    assert told["total"] == {"cells": 2, "right_by_rules": 2, "worse": 2}
    assert not told["held"]
    assert told["new"] == [{"app": "nginx", "case": "fresh", "how": "wrong: other bytes"}]
