"""S2: nobody but root can block root's merlab."""

from __future__ import annotations

import subprocess
import sys

import pytest
from walkthrough_host import NAME, merlab

from merbridge_lab import lock

pytestmark = pytest.mark.kernel

#: Tries, as its user, to hold what merlab locks or once locked; prints what could be held, and waits.
_TRY = """
import fcntl, os, sys
kept = []
for path in sys.argv[1:]:
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        try:
            descriptor = os.open(path, flags)
        except OSError:
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        kept.append(descriptor)
        print(path, end=" ")
        break
print(flush=True)
sys.stdin.read()
"""


def test_s2_an_ordinary_user_cannot_hold_it():
    ours = lock.ROOTS / f"{NAME}.lock"
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable]
    with lock.held("merlab-other", "up"):  # so that the folder exists for the attempt
        ours.touch(mode=0o600)  # as a killed one leaves it
        with subprocess.Popen(
            [*nobody, "-c", _TRY, str(ours), str(lock.ROOTS), "/run"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as other:  # fmt: skip
            assert other.stdout.readline().split() == ["/run"]
            done = merlab("down")
            assert done.returncode == 0, done.stderr
            other.stdin.close()
        assert not ours.exists()
    assert not lock.ROOTS.exists() or any(lock.ROOTS.iterdir())
