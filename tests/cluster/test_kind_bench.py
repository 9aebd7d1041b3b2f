"""`merlab bench` on the kind lab with merlab's dataplane: both ways, what is left of it, and what a kill leaves."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from agent_host import on_node, served, status
from kind_host import docker, held, kubectl, merlab, settled, stopped
from tests.merlab_cli import told

from merbridge_lab.bench.scenarios import NAMES
from merbridge_lab.labs.kubernetes import bench_objects
from schema_files import complaints

if TYPE_CHECKING:
    import subprocess

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("agent_lab")]

ONE = ("--rows", "latency", "--rounds", "1", "--json")
NAMESPACES = list(bench_objects.NAMESPACES.values())


def left() -> dict[str, list[str]]:
    """Return what a benchmark must leave as it was: the node, the pods that are served, processes in it.

    Sorted: the kernel lists directories in an order of its own.
    """
    own = ("iperf3", "wrk", "unread.py", "/server/server.yaml")
    processes = [line for line in docker("top", "merbridge-control-plane").splitlines() if any(map(line.count, own))]
    found = {**on_node(), "served": served(), "processes": processes}
    return {name: sorted(map(str, each)) for name, each in found.items()}


@pytest.fixture
def before(agent_lab: object) -> dict[str, list[str]]:  # noqa: ARG001 - it must be there
    """What is left, when pods of earlier tests are gone: their processes and pins outlive their objects."""
    assert settled(lambda: "helloworld-disposable" in served(), wanted=False, seconds=60.0) is False
    assert settled(strangers, wanted=set(), seconds=60.0) == set()
    return left()


def strangers() -> set[str]:
    """Return the uids of pods that have links and are not served: they end just now."""
    linked = {Path(path).name for path in on_node()["pins"] if Path(path).parent.name == "links"}
    return linked - {one["uid"] for one in status()["pods"] if one["state"] == "served"}


def is_as(before: dict[str, list[str]]) -> bool:
    """Report whether it is as before, after the agent had the time to see that pods are gone."""
    now = settled(left, before, 30.0)
    for name, each in left().items():
        print(name, set(each) ^ set(before[name]))  # noqa: T201 - shown where the test fails
    return now == before


def measured(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return what was measured, if each row counts."""
    assert held(done)
    report = told(done)
    assert complaints("bench", report) == []
    assert {row["name"]: row["invalid"] for row in report["rows"] if row["invalid"]} == {}
    return report


@pytest.mark.parametrize(
    "rows",
    [  # one of each program that makes load: all of them take three minutes
        pytest.param(("latency", "bulk", "open"), id="some"),
        pytest.param(NAMES, id="all", marks=pytest.mark.soak),
    ],
)
def test_each_row_is_carried_by_all_ways_and_nothing_is_left(
    rows: tuple[str, ...], before: dict[str, list[str]]
) -> None:
    report = measured(merlab("bench", "--full", "--rows", ",".join(rows), "--rounds", "1", "--json"))
    assert [row["name"] for row in report["rows"]] == [*rows, "rules-rules"]
    assert {row["name"]: set(row["ways"]) for row in report["rows"][:-1]} == {
        name: {"direct", "rules", "ebpf"} for name in rows
    }
    latency = report["rows"][0]
    assert all(way["cpu"] > 0 for way in latency["ways"].values())
    assert (report["machine"]["lab"], report["machine"]["legs"]) == ("kind", "safe")
    assert is_as(before)


def test_the_sets_swap_their_ways_and_their_sidecars_write_no_line_for_a_request() -> None:
    logged = []

    def second_set(_pid: int) -> bool:
        where = ("-n", NAMESPACES[1], "get", "namespace", NAMESPACES[1], "--ignore-not-found", "-o", "json")
        if '"merlab.dev/dataplane": "merlab"' not in kubectl(*where, check=False):
            return False
        if not {"bench-client", "bench-server"} <= served():
            return False
        pods = [(space, pod) for space in NAMESPACES[:2] for pod in ("bench-client", "bench-server")]
        logged[:] = [kubectl("-n", space, "logs", pod, "-c", "istio-proxy") for space, pod in pods]
        return True

    done = stopped("bench", "--rows", "latency", "--rounds", "40", "--json", at=second_set, by=signal.SIGINT)
    assert done.returncode == 130, done.stderr
    report = told(done)
    assert report["interrupted"]
    assert report["rounds"] >= 1
    assert {row["invalid"] for row in report["rows"]} == {None}
    assert [text for text in logged if '"GET / HTTP/1.1"' in text] == []
    assert not set(on_node()["namespaces"]) & {f"namespace/{name}" for name in NAMESPACES}


def test_killed_half_way_the_next_command_removes_what_is_left(before: dict[str, list[str]]) -> None:

    def is_served(_pid: int) -> bool:
        return "bench-client" in served()

    done = stopped("bench", "--rows", "latency", "--rounds", "40", at=is_served, by=signal.SIGKILL)
    assert done.returncode == -signal.SIGKILL
    assert set(on_node()["namespaces"]) & {f"namespace/{name}" for name in NAMESPACES}
    assert held(merlab("restore"))
    assert is_as(before)
    measured(merlab("bench", *ONE))
