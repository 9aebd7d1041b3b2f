"""The lock: between real processes, as it is between two calls of merlab."""

import os
import signal
import subprocess
import sys

import pytest

from merbridge_lab import lock
from merbridge_lab.errors import LabError

HOLD = """
import sys
from pathlib import Path
from merbridge_lab import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_holder_is_told_the_pid_of_the_first(tmp_path, holder):
    with pytest.raises(LabError) as refused, lock.held(tmp_path):
        pytest.fail("two at once")
    assert refused.value.what == f"another merlab is at work: PID {holder.pid}"
    assert refused.value.hint


def test_it_goes_with_the_process_also_when_that_is_killed(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.held(tmp_path):
        pass


def test_it_is_given_back_also_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.held(tmp_path):
        raise ZeroDivisionError
    with lock.held(tmp_path):
        pass


def test_it_is_not_inherited_by_what_merlab_starts(tmp_path):
    """A sidecar that outlives merlab must not keep the lock."""
    with lock.held(tmp_path):
        left = subprocess.Popen(["sleep", "60"])
    try:
        with lock.held(tmp_path):
            pass
    finally:
        left.kill()
        left.wait()


def test_it_leaves_no_file_behind(tmp_path):
    with lock.held(tmp_path):
        assert os.listdir(tmp_path) == []  # noqa: PTH208 - a list is what is compared
    assert not list(tmp_path.iterdir())


def test_two_folders_are_two_locks(tmp_path, holder):
    other = tmp_path / "other"
    other.mkdir()
    with lock.held(other):
        assert holder.poll() is None
