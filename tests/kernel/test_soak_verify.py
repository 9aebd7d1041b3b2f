"""On a busy machine, a healthy lab is not reported as broken: a hundred verifies, one after the other."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest
from walkthrough_host import differences, merlab, picture

pytestmark = [pytest.mark.kernel, pytest.mark.soak]

#: To try fewer: MERLAB_VERIFIES=10 make soak ARGS="-k busy"
MANY = int(os.environ.get("MERLAB_VERIFIES", "100"))
#: Programs running beside merlab, on each processor; all of them, and merlab, yield to the rest of the machine.
BESIDE = 5
NICE = ("nice", "-n", "10")
#: They end by themselves, whatever happens to the test.
_BURN = "import time\nend = time.monotonic() + 7200\nwhile time.monotonic() < end: pass"


@contextlib.contextmanager
def busy():
    """Keep the processors busy."""
    number = BESIDE * len(os.sched_getaffinity(0))
    burning = [subprocess.Popen([*NICE, sys.executable, "-S", "-c", _BURN]) for _ in range(number)]
    try:
        yield
    finally:
        for each in burning:
            each.kill()
            each.wait()


def test_healthy_verifies_on_a_busy_machine():
    host = picture()
    assert merlab("up", "-q").returncode == 0
    wrong = []
    try:
        with busy():
            for number in range(MANY):
                done = merlab("verify", "--json", prefix=NICE)
                told = json.loads(done.stdout)
                if done.returncode or told["cause"]:
                    wrong.append((number, done.returncode, told["cause"], told["error"]))
    finally:
        merlab("down")
    assert wrong == []
    assert differences(host) == {}
