"""A choice of the cells of make test-apps, as make test runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]


def test_real_programs_are_as_well_off_by_ebpf_as_they_are_known_to_be():
    argv = [sys.executable, "-m", "tests.apps", "--quick", "--legs", "safe", "--json"]
    done = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True, timeout=400)
    if done.returncode == 3:
        pytest.skip(done.stderr)
    told = json.loads(done.stdout)
    assert told["unproved"] == []
    assert told["new"] == []
    assert told["better"] == []
    assert done.returncode == 0
    right = {each["app"]: [cell["outcome"] for cell in each["rules"]["cells"].values()] for each in told["apps"]}
    assert len(right) >= 12
    assert {app: cells for app, cells in right.items() if set(cells) != {"ok"}} == {}, "the reference"
