"""A terminal that goes away (M5), and signals as they were found (M6); real ones, in separate processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.merlab_cli import MERLAB, environment
from tests.pty_terminal import OnTerminal

from merbridge_lab.console import terminal


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_streams_that_the_caller_closed_are_connected_to_nothing(closed):
    script = f'"$0" steps --json {closed}'
    done = subprocess.run(["sh", "-c", script, MERLAB], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">&-" not in closed.replace("2>&-", ""))


def test_who_no_longer_reads_a_pipe_is_known():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        unbroken = terminal._Unbroken(stream)
        assert unbroken.is_read()
        os.close(reading)
        assert not unbroken.is_read()


#: A run of the lab in memory: it prints a good deal, and checks whether it was stopped.
RUN = """
import sys
sys.path.insert(0, {tests!r})
from fake_lab import FakeLab
from merbridge_lab import cli
from merbridge_lab.cli.session import Session
from merbridge_lab.loader import steps
from merbridge_lab.report import Report
from merbridge_lab.runner import Runner
from pathlib import Path
import typer
try:
    with Session("up") as run:
        lab = FakeLab()
        {begin}
        run.report = Report("up", "fake")
        runner = Runner(lab, run.console.hear, patience=0.05)
        try:
            runner.run(run.report, steps())
            run.console.verdict(run.report)
        finally:
            run.console.say("cleaned up")
            Path({done!r}).write_text("cleaned up")
except typer.Exit as ended:
    sys.exit(ended.exit_code)
"""
TESTS = str(Path(__file__).parents[1])


def program(tmp_path, begin="pass"):
    text = RUN.format(tests=TESTS, begin=begin, done=str(tmp_path / "done"))
    return [sys.executable, "-c", text]


WAIT = "sys.stdout.write('ready\\n'); sys.stdout.flush(); import time; time.sleep(1)"


def test_a_terminal_that_goes_away_ends_the_run_as_sighup_does(tmp_path):
    """M5: what is running ends cleanly, and the status is 129."""
    run = OnTerminal(program(tmp_path, WAIT))
    run.read_until(b"ready\r\n")
    run.go_away()
    status, errors = run.end()
    assert "Traceback" not in errors
    assert "defect" not in errors
    assert status == 128 + signal.SIGHUP
    assert (tmp_path / "done").read_text() == "cleaned up"


def test_a_terminal_that_goes_away_while_a_key_is_awaited():
    """M5: reading from it returns EIO, or its end."""
    run = OnTerminal([sys.executable, f"{TESTS}/fake_merlab.py", "--is-up", "step", "9", "--demo"])
    run.read_until(b"Enter: run")
    run.go_away()
    status, errors = run.end()
    assert "Traceback" not in errors
    assert status == 128 + signal.SIGHUP


def test_under_nohup_a_terminal_that_goes_away_changes_nothing(tmp_path):
    """M5, M6: a user who ignores hangups wants the work done."""
    run = OnTerminal(program(tmp_path, WAIT), ignore=[signal.SIGHUP])
    run.read_until(b"ready\r\n")
    run.go_away()
    status, errors = run.end()
    assert "Traceback" not in errors
    assert status == 0, errors


def test_a_command_that_only_prints_ends_so_too():
    """M5: if there is nothing left to stop, the outcome still did not reach anybody."""
    text = "import time, sys; sys.argv[0] = 'merlab'; from merbridge_lab.cli import main; "
    run = OnTerminal([sys.executable, "-c", f"{text}print('ready', flush=True); time.sleep(1); main()", "steps", "9"])
    run.read_until(b"ready\r\n")
    run.go_away()
    status, errors = run.end()
    assert "Traceback" not in errors
    assert status == 128 + signal.SIGHUP, errors


@pytest.mark.parametrize("words", [("steps", "9"), ("--help",), ("up", "--help")], ids=" ".join)
def test_a_full_disk_under_the_output_is_told(words):
    """M3: the output is lost, and the status tells so."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [MERLAB, *words], stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False
        )
    assert done.returncode == 3, done.stderr
    assert "could be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


IGNORING = """
import os, signal, sys
signal.signal(signal.%s, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])
"""
KEEP = """
import os, signal, sys
from merbridge_lab import signals
from merbridge_lab.adapters import command
signals.install()
"""


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_what_was_ignored_stays_ignored(signum):
    """M6: nohup, and the `&` of a script."""
    text = f"{KEEP}os.kill(os.getpid(), {int(signum)}); signals.checkpoint(); print('went on')"
    ignored = subprocess.run(
        [sys.executable, "-c", (IGNORING % signum.name), text],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ignored.stdout == "went on\n", ignored.stderr
    noted = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert "Interrupted" in noted.stderr


STATUS = "/proc/self/status"


def dispositions(start, how, *before):
    """Return what a program finds ignored and blocked if `how` starts it from a merlab started with `before` done."""
    argv = ["grep", "-E", "^Sig(Ign|Blk)", STATUS]
    text = f"{KEEP}{start}\n{how}({argv!r})"
    outer = (
        "import os, signal, sys\n"
        "for s in (signal.SIGPIPE, signal.SIGXFSZ): signal.signal(s, signal.SIG_DFL)\n"
        + "\n".join(before)
        + "\nos.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    )
    done = subprocess.run([sys.executable, "-c", outer, text], capture_output=True, text=True, check=True)
    rows = dict(line.split() for line in done.stdout.splitlines())
    return {name: {n for n in range(1, 32) if int(mask, 16) >> (n - 1) & 1} for name, mask in rows.items()}


@pytest.mark.parametrize("how", ["command.replace", "command.foreground"])
def test_a_program_by_hand_finds_its_signals_as_merlab_did(how):
    """M6: `merlab exec sleep -- yes | head -1` ends; nohup and a mask go through."""
    assert dispositions("", how) == {"SigIgn:": set(), "SigBlk:": set()}
    found = dispositions(
        "",
        how,
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)",
        "signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])",
    )
    assert found == {"SigIgn:": {signal.SIGHUP, signal.SIGUSR1}, "SigBlk:": {signal.SIGUSR2}}


def test_yes_ends_when_nobody_reads_it():
    """M6."""
    text = f"{KEEP}command.replace(['yes'])"
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) as yes:
        try:
            assert yes.stdout.readline() == b"y\n"
            yes.stdout.close()
            assert yes.wait(10) == -signal.SIGPIPE
        finally:
            with contextlib.suppress(OSError):
                yes.kill()


def test_a_shell_in_the_foreground_tells_how_it_ended():
    """M6: as a shell tells it."""
    text = f"{KEEP}print(command.foreground(['sh', '-c', 'kill -9 $$']), command.foreground(['sh', '-c', 'exit 7']))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "137 7\n"


def test_a_parent_that_forgets_its_children_turns_no_failure_into_a_success():
    """M6: with SIGCHLD ignored the kernel does not report how a command ended."""
    text = f"{KEEP}print(command.run(['sh', '-c', 'exit 7'], ok=range(256)).status)"
    done = subprocess.run(
        [sys.executable, "-c", (IGNORING % "SIGCHLD"), text],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "7\n"
