"""M3: machines that run out of something, before or in the middle: status 3, what is full, nothing half-changed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests.merlab_cli import MERLAB
from tests.pty_terminal import OnTerminal
from walkthrough_host import LONG, NAME, Lab, environment, is_plain, merlab

from merbridge_lab.adapters import mounts
from merbridge_lab.labs.embedded.host import Machine

pytestmark = pytest.mark.kernel


def left():
    """Return what exists of a lab, by the three places where `down` finds one."""
    machine = Machine(NAME)
    return [str(place) for place in (machine.run, machine.cgroup) if place.exists()] + [
        str(mount.target) for mount in mounts.below(machine.run)
    ]


@pytest.fixture
def host():
    merlab("down")
    yield
    merlab("down")
    assert left() == []


@pytest.fixture(scope="module")
def standing():
    """A complete lab, shared by the tests that break nothing of it: they come first."""
    merlab("down")
    done = merlab("up", "-q", "--until", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    yield Lab()
    merlab("down")
    assert left() == []


@contextlib.contextmanager
def limited(most):
    """Create a separate cgroup with at most `most` processes and threads; return its cgroup.procs."""
    first = Path("/sys/fs/cgroup/pids")
    place = (first if first.is_dir() else Path("/sys/fs/cgroup")) / f"{NAME}-limited"
    if not first.is_dir():
        (place.parent / "cgroup.subtree_control").write_text("+pids")
    place.mkdir()
    try:
        (place / "pids.max").write_text(str(most))
        yield place / "cgroup.procs"
    finally:
        for pid in (place / "cgroup.procs").read_text().split():
            (place.parent / "cgroup.procs").write_text(pid)
        place.rmdir()


def within(procs):
    return ("sh", "-c", f'echo 0 >"{procs}"; exec "$@"', "sh")


def few_files(most):
    return ("sh", "-c", f'ulimit -n {most}; exec "$@"', "sh")


def refused(done, *words):
    said = done.stdout + done.stderr
    assert done.returncode == 3, said
    assert is_plain(done), said
    for word in words:
        assert word in said


def steps_through(standing, prefix):
    """Call `step 9` where it may run out anywhere: it holds, or reports what is used up, and the rules are there."""
    rules = standing.rules()
    done = merlab("step", "9", "-q", prefix=prefix)
    assert is_plain(done), done.stdout + done.stderr
    if done.returncode:
        refused(done, "no more files" if "ulimit" in " ".join(prefix) else "no further process")
    if standing.is_flushed:  # what could not be restored then is restored as soon as there is room
        assert merlab("restore").returncode == 0
    assert standing.rules() == rules
    assert not standing.is_flushed
    return done.returncode


def test_a_flush_that_runs_out_of_files_loses_no_rule(standing):
    ended = {most: steps_through(standing, few_files(most)) for most in (9, 13, 20)}
    assert ended[9] == 3
    assert steps_through(standing, few_files(40)) == 0


def test_a_flush_that_runs_out_of_processes_loses_no_rule(standing):
    ended = {}
    for most in (1, 3, 8):
        with limited(most) as procs:
            ended[most] = steps_through(standing, within(procs))
    assert ended[1] == 3
    with limited(200) as procs:
        assert steps_through(standing, within(procs)) == 0


def test_what_nobody_reads_any_more_ends(standing):  # noqa: ARG001
    """M6: the command of `exec` gets SIGPIPE."""
    done = subprocess.run(
        ["bash", "-c", f"'{MERLAB}' exec sleep -- yes | head -1; echo \"${{PIPESTATUS[0]}}\""],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "y\n141\n", done.stderr


def test_few_files_are_said_before_anything_is_made(host):  # noqa: ARG001
    refused(merlab("up", prefix=few_files(32)), "limits.files", "ulimit -n 4096")
    assert left() == []
    refused(merlab("up", prefix=few_files(10)), "open no more files", "ulimit -n 4096")
    assert left() == []


def test_few_processes_are_said_before_anything_is_made(host):  # noqa: ARG001
    with limited(40) as procs:
        refused(merlab("up", prefix=within(procs)), "limits.processes", f"> {procs.parent}/pids.max")
    assert left() == []


def test_a_full_run_is_said_before_anything_is_made(host):  # noqa: ARG001
    lines = "mount -t tmpfs -o size=16k none /run; cat /dev/zero >/run/full || :"
    prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-c", f'{lines} 2>/dev/null; exec "$@"', "sh")
    refused(merlab("up", prefix=prefix), "run_directory", "df -h /run")
    assert left() == []


def fill(lab):
    subprocess.run(["mount", "-o", "remount,size=1m", str(lab.run)], check=True)
    filler = lab.run / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def test_a_disk_that_fills_in_the_middle_says_what_stands(host):  # noqa: ARG001
    assert merlab("up", "-q", "--until", "1").returncode == 0
    lab = Lab()
    fill(lab)
    refused(
        merlab("up", "-q", "--until", "3"),
        "no space left",
        f"df -h {lab.run}",
        "the lab is in place as far as step 1 (merlab up goes on from there, merlab down removes it)",
    )
    (lab.run / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=512m", str(lab.run)], check=True)
    assert merlab("up", "-q", "--until", "3").returncode == 0


def test_down_needs_little(host):  # noqa: ARG001
    """It works even if `up` would not begin."""
    assert merlab("up", "-q", "--until", "1").returncode == 0
    fill(Lab())
    with limited(12) as procs:
        done = merlab("down", prefix=(*within(procs), *few_files(24)))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_terminal_that_goes_away_leaves_a_lab_to_go_on_with(host):  # noqa: ARG001
    """M5."""
    run = OnTerminal([MERLAB, "up", "--until", "3"], MERLAB_NAME=NAME)
    run.read_until(b"1  ")
    run.go_away()
    status, errors = run.end(LONG)
    assert "Traceback" not in errors
    assert status == 128 + signal.SIGHUP, errors
    assert merlab("up", "-q", "--until", "3").returncode == 0


def test_under_nohup_the_work_is_done(host, tmp_path, monkeypatch):  # noqa: ARG001
    """M6: neither the terminal's end nor its SIGHUP stops it."""
    monkeypatch.chdir(tmp_path)  # nohup writes nohup.out
    run = OnTerminal(["nohup", MERLAB, "up", "-q", "--until", "2"], MERLAB_NAME=NAME)
    os.kill(run.process.pid, 0)
    run.go_away()
    for _ in range(3):
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(0.5)
        with contextlib.suppress(ProcessLookupError):
            run.process.send_signal(signal.SIGHUP)
    status, errors = run.end(LONG)
    assert status == 0, errors
    assert Lab().pids()
