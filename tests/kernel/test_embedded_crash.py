"""After a kill at any moment, a lab can be continued, and be removed completely."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from host_state import Lab, curl, state

from merbridge_lab.polling import poll_until

pytestmark = pytest.mark.kernel

NAME = "merlab-crash"

#: Counts audit events (every file opened, directory created, process started) and kills itself at the given one.
CHILD = """
import os, signal, sys
import cryptography.x509, jinja2, pyroute2, sh, tenacity
import merbridge_lab.labs.embedded.certificates
sys.path.insert(0, sys.argv[3])
from host_state import Lab

seen, last = 0, int(sys.argv[1])
def hook(event, _args):
    global seen
    if event.startswith(("open", "os.", "shutil.", "subprocess.", "socket.", "ctypes.")):
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)

lab = Lab(sys.argv[2])
sys.addaudithook(hook)
lab.ensure()
if len(sys.argv) > 4:
    seen = 0
    lab.machine.remove(10)
print(seen)
"""


def child(last: int, *extra: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", CHILD, str(last), NAME, __file__.rpartition("/")[0], *extra]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def equals(before: dict[str, object]) -> dict[str, object]:
    """Compare the host with `before`, waiting for what is ending; return the differences."""

    def differences() -> dict[str, object]:
        now = state(NAME)
        return {key: (before[key], now[key]) for key in before if now[key] != before[key]}

    poll_until(lambda: not differences(), timeout=5, awaiting="the host to be as before")
    return differences()


@pytest.fixture(scope="module")
def before():
    Lab(NAME).machine.remove(10)
    return state(NAME)


@pytest.fixture(scope="module")
def events():
    Lab(NAME).machine.remove(10)
    done = child(-1)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture(autouse=True)
def clean():
    yield
    Lab(NAME).machine.remove(10)


def test_removed_a_lab_leaves_nothing(before):
    lab = Lab(NAME)
    lab.ensure()
    lab.machine.remove(10)
    assert equals(before) == {}
    lab.machine.remove(10)
    assert equals(before) == {}


@pytest.mark.parametrize("share", [0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_killed_while_it_is_made_it_can_be_removed(before, events, share):
    assert child(max(1, int(events * share))).returncode == -signal.SIGKILL
    Lab(NAME).machine.remove(10)
    assert equals(before) == {}


@pytest.mark.parametrize("share", [0.15, 0.35, 0.55, 0.75])
def test_killed_while_it_is_made_it_can_be_gone_on_with(before, events, share):
    assert child(int(events * share)).returncode == -signal.SIGKILL
    lab = Lab(NAME)
    lab.ensure()
    assert lab.problems() == []
    assert curl(lab.sleep).stdout.startswith("Hello version")
    lab.machine.remove(10)
    assert equals(before) == {}


@pytest.mark.parametrize("last", [5, 40, 80, 120])
def test_killed_while_it_is_removed_it_can_be_removed(before, last):
    lab = Lab(NAME)
    lab.ensure()
    script = CHILD.replace("lab.ensure()\n", "", 1)
    argv = [sys.executable, "-c", script, str(last), NAME, __file__.rpartition("/")[0], "remove"]
    subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    lab.machine.remove(10)
    assert equals(before) == {}
