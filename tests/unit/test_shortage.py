"""M3: what a machine has run out of is reported as such, wherever it happens, and never as internal error."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.merlab_cli import environment

from fake_lab import FakeLab, up
from merbridge_lab import shortage, signals
from merbridge_lab.adapters import command, netns
from merbridge_lab.errors import LabError, ShortageError
from merbridge_lab.lab import CONTROL_CLIENT
from merbridge_lab.loader import steps
from merbridge_lab.report import Report
from merbridge_lab.requirements import host
from merbridge_lab.runner import Runner, undo

KINDS = [
    (errno.ENOSPC, "there is no space left in /usr", "df -h /usr; df -i /usr"),
    (errno.EDQUOT, "the disk quota is used up in /usr", "quota -v; df -h /usr"),
    (errno.EROFS, "the file system of /usr is read-only", "mount -o remount,rw /"),
    (errno.EMFILE, "merlab may open no more files", "ulimit -n 4096"),
    (errno.ENFILE, "reached its limit of open files", "cat /proc/sys/fs/file-nr; sysctl fs.file-max"),
    (errno.EAGAIN, "no further process or thread can be started", "ulimit -u"),
    (errno.ENOMEM, "there is not enough memory", "ps aux --sort -rss | head"),
]


@pytest.mark.parametrize(("code", "what", "hint"), KINDS, ids=str)
def test_each_kind_has_a_sentence_and_a_command(code, what, hint):
    told = shortage.explained(OSError(code, os.strerror(code), "/usr/none/such"))
    assert isinstance(told, ShortageError)
    assert what in told.what
    assert told.hint is not None
    assert hint in told.hint or "pids.max" in told.hint or told.hint.startswith("mount -o remount,rw /")


@pytest.mark.parametrize(
    ("mounted", "hint"), [("/", "mount -t tmpfs tmpfs /run"), ("/run", "mount -o remount,rw /run")]
)
def test_a_run_directory_that_is_read_only(monkeypatch, mounted, hint):
    """What is not a mount cannot be mounted again: a container's /run is a part of its read-only root."""
    monkeypatch.setattr(shortage, "_mount_point", lambda _: mounted)
    assert shortage.writable(Path("/run")) == hint
    assert shortage.writable("/usr") == f"mount -o remount,rw {mounted}"


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EPERM, errno.EINVAL, errno.EBUSY])
def test_what_is_no_shortage_is_not_called_one(code):
    assert shortage.explained(OSError(code, os.strerror(code), "/usr")) is None
    assert shortage.explained(ValueError("x")) is None
    plain = LabError("in the way", hint="do this")
    assert shortage.explained(plain) is plain


def behind(error, cause):
    error.__cause__ = cause
    return error


def test_what_is_behind_an_error_is_told_with_it():
    cause = OSError(errno.ENOSPC, "No space left on device", "/run")
    told = shortage.explained(behind(LabError("the namespace cannot be made", hint="merlab doctor"), cause))
    assert isinstance(told, ShortageError)
    assert told.what == "the namespace cannot be made: there is no space left in /run"
    assert told.hint == "df -h /run; df -i /run"


def test_a_lock_that_somebody_has_is_no_want_of_processes():
    held = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    error = behind(LabError("another merlab command is running"), held)
    assert shortage.explained(error) is error


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("tee: /run/merlab/x: No space left on device", "no space left in /run"),
        ("mkdir: cannot create directory '/usr/x': Read-only file system", "is read-only"),
        ("sh: 1: Cannot fork", "no further process"),
        ("bash: fork: retry: Resource temporarily unavailable", "no further process"),
        ("[warn] evutil_make_internal_pipe_: pipe: Too many open files", "no more files"),
        ("ip: RTNETLINK answers: Cannot allocate memory", "not enough memory"),
    ],
)
def test_a_command_that_complains_of_it_is_understood(said, what):
    told = shortage.explained(LabError("ip failed with exit status 2", command="ip link", stderr=said))
    assert isinstance(told, ShortageError)
    assert told.what.startswith("ip failed with exit status 2: ")
    assert what in told.what
    assert (told.command, told.stderr) == ("ip link", said)


def full(*_args, **_options):
    raise OSError(errno.ENOSPC, "No space left on device", "/run")


def test_a_step_that_runs_out_ends_the_run_with_it():
    lab = FakeLab()
    lab.node.ensure = full
    report = Runner(lab, patience=0.05).run(Report("up", "fake"), steps()[:4])
    assert isinstance(report.error, ShortageError)
    assert report.steps[-1].verdict.value == "error"


def test_a_proof_that_runs_out_is_no_defect(monkeypatch):
    lab = up(FakeLab())
    monkeypatch.setattr(lab, "flushed", full)
    report = Runner(lab, patience=0.05).prove(Report("verify", "fake"), standing=steps()[1:4], steps=steps()[8:])
    assert isinstance(report.error, ShortageError)
    assert CONTROL_CLIENT in lab.capabilities


def test_an_undo_that_runs_out_stops_no_other():
    """`down` tries the other components, and reports the first error."""
    lab = up(FakeLab())
    done = []
    lab.dataplane.remove = full
    for part in (lab.mesh, lab.node):
        part.remove = lambda part=part: done.append(part)
    with pytest.raises(ShortageError):
        undo(lab, steps())
    assert done == [lab.mesh, lab.node]


def test_a_thread_that_cannot_start(monkeypatch):
    def start(_self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ShortageError, match="no further process or thread"), shortage.told():
        netns.run_inside(Path("/proc/self/ns/net"), lambda: None)
    assert command.run(["echo", "no thread needed"]).stdout == "no thread needed\n"


SCARCE = """
import resource, sys
from merbridge_lab import shortage
from merbridge_lab.adapters.command import run
from merbridge_lab.errors import LabError
import os
most = len(os.listdir("/proc/self/fd")) + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (most, 4096))
told = []
for _ in range(20):
    try:
        run(["true"])
        told.append("ran")
    except LabError as error:
        told.append(error.what)
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
print(len(os.listdir("/proc/self/fd")) + int(sys.argv[1]) - most, sorted(set(told)))
print(run(["echo", "again"]).stdout)
"""


@pytest.mark.parametrize("spare", range(7))
def test_few_descriptors_are_told_and_none_is_lost(spare):
    """Repeated attempts must not use up what is left."""
    done = subprocess.run([sys.executable, "-c", SCARCE, str(spare)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, again, *_ = done.stdout.split("\n")
    assert first.startswith("0 "), first
    assert "may open no more files" in first or first == "0 ['ran']"
    assert again == "again"


def test_a_clean_up_waits_for_room(monkeypatch):
    """Rules are restored although no process could be started at first."""
    started = subprocess.Popen
    refused = [BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))] * 3

    def popen(*args, **options):
        if refused:
            raise refused.pop()
        return started(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(ShortageError):
        command.run(["true"])
    with signals.shielded():
        assert command.run(["true"]).status == 0
    assert not refused


def test_a_run_that_ran_out_says_what_is_in_place():
    """`up` in the middle: what is in place, and what to type; in words and in JSON."""
    text = f"""
import errno, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import typer
from fake_lab import FakeLab
from merbridge_lab.cli.session import Session
from merbridge_lab.loader import steps
from merbridge_lab.report import Report
from merbridge_lab.runner import Runner
def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device", "/run")
try:
    with Session("up", as_json="--json" in sys.argv) as run:
        lab = FakeLab()
        type(lab).exists = True
        lab.keep_report = lambda _told: None
        lab.mesh.ensure = full
        run.report = Report("up", "fake")
        Runner(lab, run.console.hear, patience=0.05).run(run.report, steps())
        run.finish(lab, run.report)
except typer.Exit as ended:
    sys.exit(ended.exit_code)
"""
    for more in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-c", text, *more], capture_output=True, text=True, env=environment(), check=False
        )
        assert done.returncode == 3, done.stdout + done.stderr
        said = json.loads(done.stdout)["error"]["what"] if more else done.stderr
        assert "there is no space left in /run; the lab is in place as far as step 1 (merlab up goes on" in said
        assert "df -h /run" in done.stdout + done.stderr


def test_limits_are_looked_at_before_anything_is_made():
    assert host.judge_files(64, 64).verdict == "pass"
    assert host.judge_files(resource.RLIM_INFINITY, resource.RLIM_INFINITY).verdict == "pass"
    few = host.judge_files(32, 4096)
    assert (few.verdict, few.found, few.hint) == ("fail", "32 open files a process", "ulimit -n 4096")
    assert host.judge_files(4096, 40).verdict == "fail"
    place = Path("/sys/fs/cgroup/user.slice")
    assert host.judge_processes([]).verdict == "pass"
    assert host.judge_processes([(place, 10, 100), (place.parent, 10, 1000)]).verdict == "pass"
    tight = host.judge_processes([(place, 90, 100), (place.parent, 10, 1000)])
    assert (tight.verdict, tight.found) == ("fail", f"90 of 100 in {place}")
    assert str(place) in tight.hint


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), ShortageError("nothing is left")])
def test_what_a_shortage_kept_from_being_read_fails_no_check(error):
    with pytest.raises(ShortageError):
        shortage.unread("the log", error)


def test_a_cgroup_that_may_have_no_more_below_it_is_no_want_of_processes():
    refused = OSError(errno.EAGAIN, "Resource temporarily unavailable", "/sys/fs/cgroup/merlab/twins/sleep-twin")
    told = shortage.of(refused)
    assert told.what == "no further cgroup can be created in /sys/fs/cgroup/merlab/twins"
    assert "cgroup.max.descendants" in told.hint


def test_what_something_else_kept_from_being_read_is_unread():
    assert shortage.unread("the log", OSError(errno.EACCES, "Permission denied")).why == "Permission denied"
    assert shortage.unread("the log", LabError("no such tool"), "nft", "it is away").why == "nft: it is away"
