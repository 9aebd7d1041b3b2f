"""`merlab … --kernel`: what a user sees of up, a command and down in a guest, and that nothing is left of it."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import pytest
from tests.guests import packages

from merbridge_lab.guest import kernels

pytestmark = pytest.mark.guests

MERLAB = str(Path(sys.executable).with_name("merlab"))
RELEASE = "trixie"


@pytest.fixture(scope="module")
def kernel():
    packages.install()
    return kernels.of_release(RELEASE, print)


def guests_of(kernel):
    """Return the PIDs of all guests with this kernel's image."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = place.read_bytes().split(b"\0")
        except OSError:
            continue
        if argv[0].endswith(b"qemu-system-x86_64") and str(kernel.image).encode() in argv:
            found.append(place.parent.name)
    return found


def made_here():
    """Return merlab's temporary files."""
    return set(Path(tempfile.gettempdir()).glob("merlab*"))


def until(look, what, seconds):
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return seen


def test_verify_proves_six_cells_in_one_object(kernel):
    ran = subprocess.run(
        [MERLAB, "verify", "--kernel", RELEASE, "--json"], capture_output=True, text=True, check=False, timeout=2400
    )
    told = json.loads(ran.stdout)
    assert (ran.returncode, told["verdict"], told["command"]) == (0, "pass", "verify"), ran.stderr
    assert [cell["verdict"] for cell in told["matrix"]] == ["pass"] * 6
    assert f"Linux {kernel.version} in a guest" in ran.stderr
    assert guests_of(kernel) == []


def test_what_does_not_hold_has_its_exit_status(kernel):
    argv = [MERLAB, "up", "--kernel", RELEASE, "--until", "2", "--legs", "nonsense"]
    assert subprocess.run(argv, check=False, capture_output=True, timeout=60).returncode == 2
    ran = subprocess.run(
        [MERLAB, "doctor", "--kernel", RELEASE, "--json"], check=False, capture_output=True, text=True, timeout=600
    )
    checks = {each["name"]: each for each in json.loads(ran.stdout)["checks"]}
    assert (ran.returncode, checks["kernel.version"]["found"]) == (0, kernel.version)


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_ends_it_at_once_and_nothing_is_left(kernel, signum, status):
    temporary = made_here()
    with subprocess.Popen([MERLAB, "verify", "--kernel", RELEASE], stdout=-3, stderr=subprocess.PIPE) as merlab:
        for line in merlab.stderr:
            if b"lab: embedded" in line:  # merlab in the guest says so
                break
        assert guests_of(kernel) != []
        merlab.send_signal(signum)
        assert merlab.wait(20) == status
        until(lambda: not guests_of(kernel), "the guest is gone", 10)
    assert made_here() == temporary


def test_at_a_terminal_up_gives_a_shell(kernel):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))
    argv = [MERLAB, "up", "--kernel", RELEASE, "--until", "1"]
    environment = {**os.environ, "TERM": "xterm", "SHELL": "/bin/sh", "PS1": "$ "}
    seen = b""
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as merlab:
        os.close(theirs)
        asked = False
        deadline = time.monotonic() + 1200
        while time.monotonic() < deadline:
            try:
                chunk = os.read(ours, 65536)
            except OSError:
                break
            seen += chunk
            if not asked and b"A shell in the guest" in seen:
                os.write(ours, b"uname -r; merlab status | head -1; stty size; exit\r")
                asked = True
            if not chunk:
                break
        assert merlab.wait(30) == 0, seen.decode()
    os.close(ours)
    lines = [line.strip().removeprefix("# ") for line in seen.decode().partition("A shell in")[2].split("\n")]
    assert [kernel.version in lines, "30 100" in lines, "the lab is gone" in lines] == [True] * 3, lines
    assert guests_of(kernel) == []
