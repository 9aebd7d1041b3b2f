"""What MERLAB_REQUIRE means: no test that must run is skipped unnoticed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SKIPPING = 'import pytest\n{mark}\ndef test_it():\n    pytest.skip("for a reason")\n'


def outcome(tmp_path, mark, require):
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  soak: x\n  packaging: x\n  cluster: x\n  kernel: x\n")
    (tmp_path / "test_one.py").write_text(SKIPPING.format(mark=mark))
    environment = {**os.environ, "MERLAB_REQUIRE": require, "MERLAB_TEST_CLUSTER": "x"}
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "-m", "packaging or not packaging"]
    return subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("mark", ["", "@pytest.mark.packaging"])
def test_a_test_that_needs_nothing_may_not_skip_where_anything_is_required(tmp_path, mark):
    done = outcome(tmp_path, mark, "kernel")
    assert done.returncode == 1, done.stdout
    assert "MERLAB_REQUIRE=kernel: this may not be skipped. Skipped: for a reason" in done.stdout
    assert "1 skipped" in outcome(tmp_path, mark, "").stdout


def test_a_marked_test_may_skip_where_only_another_marker_is_required(tmp_path):
    assert "1 skipped" in outcome(tmp_path, "@pytest.mark.cluster", "kernel").stdout
    assert outcome(tmp_path, "@pytest.mark.cluster", "cluster").returncode == 1
