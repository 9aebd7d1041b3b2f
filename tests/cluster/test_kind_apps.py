"""Real programs as apps of the cluster's pods, by eBPF and by the rules alone: all cells of `python -m tests.apps`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.cluster import builds

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.usefixtures("agent_lab")]

#: Where sidecars read HTTP, Envoy resets a client that half-closes, by the rules and in the embedded lab, too.
NOT_BY_ENVOY = {("nginx behind an HTTP route", "half-close")}


def test_real_programs_are_as_well_off_by_ebpf_as_by_the_rules() -> None:
    argv = [sys.executable, "-m", "tests.apps", "--cluster", "--json"]
    done = subprocess.run(argv, cwd=builds.ROOT, check=False, capture_output=True, text=True, timeout=1800)
    assert done.returncode in (0, 1), done.stderr
    told = json.loads(done.stdout)
    assert told["unproved"] == []
    assert (told["new"], told["better"]) == ([], [])
    assert done.returncode == 0
    wrong = {
        (app["app"], case)
        for app in told["apps"]
        if not app["not_run"]
        for case, cell in app["rules"]["cells"].items()
        if cell["outcome"] != "ok"
    }
    assert wrong <= NOT_BY_ENVOY, "the reference"
    assert told["total"]["cells"] > 500
