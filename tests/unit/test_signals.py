"""Signals, real ones, to a real process that runs real commands."""

import signal
import subprocess
import sys
import time

import pytest

HEAD = """
import os, signal, sys
from merbridge_lab import signals, polling
from merbridge_lab.adapters.command import run
signals.install()

def say(text):
    print(text, flush=True)

def hit(signum=signal.SIGINT):
    os.kill(os.getpid(), signum)
"""


class Process:
    """Python in a separate process, which prints a line before it is to be hit."""

    def __init__(self, text):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HEAD + text], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def heard(self):
        return self.process.stdout.readline().strip()

    def rest(self):
        lines, _ = self.process.communicate(timeout=20)
        return lines.split("\n")[:-1]


@pytest.fixture
def start():
    started = []

    def begin(text):
        started.append(Process(text))
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def test_the_first_ctrl_c_ends_the_running_command_and_raises_once(start):
    one = start("""
try:
    say("ready")
    run(["sleep", "60"], timeout=60)
except signals.Interrupted as stop:
    say(f"interrupted by {stop} {int(stop.signum)}")
signals.checkpoint()
say(run(["echo", "cleaned up"]).stdout.strip())
""")
    assert one.heard() == "ready"
    began = time.monotonic()
    time.sleep(0.3)  # until the command runs; if it does not yet, the signal is kept for it
    one.process.send_signal(signal.SIGINT)
    assert one.rest() == ["interrupted by SIGINT 2", "cleaned up"]
    assert time.monotonic() - began < 15


def test_a_ctrl_c_that_who_looks_after_the_command_notices_is_not_lost(start):
    one = start("""
def look():
    hit()
    signals.checkpoint()
    say("not reached")

try:
    run(["sleep", "60"], timeout=60, look=look)
except signals.Interrupted as stop:
    say(f"interrupted by {stop}")
""")
    assert one.rest() == ["interrupted by SIGINT"]


def test_a_second_ctrl_c_during_the_clean_up_changes_nothing(start):
    one = start("""
try:
    hit()
    signals.checkpoint()
except signals.Interrupted:
    say("cleaning up")
    done = run(["sh", "-c", "echo asked; sleep 0.7; echo put back"])
    say(done.stdout.split("\\n")[1])
    signals.checkpoint()
    say("done")
""")
    assert one.heard() == "cleaning up"
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        one.process.send_signal(signum)
        time.sleep(0.1)
    assert one.rest() == ["put back", "done"]


def test_what_is_shielded_comes_to_its_end_and_the_signal_is_seen_after_it(start):
    one = start("""
try:
    with signals.shielded():
        say("ready")
        say(run(["sh", "-c", "sleep 0.7; echo whole"]).stdout.strip())
        with signals.shielded():
            signals.checkpoint()
        signals.checkpoint()
        say("end of the block")
    signals.checkpoint()
    say("not reached")
except signals.Interrupted:
    say("interrupted")
""")
    assert one.heard() == "ready"
    time.sleep(0.2)
    one.process.send_signal(signal.SIGINT)
    assert one.rest() == ["whole", "end of the block", "interrupted"]


def test_a_signal_just_before_a_command_ends_it_too(start):
    """Between the last checkpoint and the command, a signal must not wait for the command to end by itself."""
    one = start("""
hit()
ended = []
with signals.cancelling(lambda: ended.append(True)):
    say(f"told {ended}")
with signals.shielded(), signals.cancelling(lambda: say("told in vain")):
    pass
try:
    signals.checkpoint()
except signals.Interrupted:
    with signals.cancelling(lambda: say("told in vain")):
        hit()
""")
    assert one.rest() == ["told [True]"]


def test_a_wait_is_interrupted(start):
    one = start("""
say("ready")
try:
    polling.poll_until(lambda: False, timeout=60, awaiting="nothing")
except signals.Interrupted:
    say("interrupted")
""")
    assert one.heard() == "ready"
    began = time.monotonic()
    one.process.send_signal(signal.SIGINT)
    assert one.rest() == ["interrupted"]
    assert time.monotonic() - began < 15


def test_a_command_is_not_hit_by_the_ctrl_c_of_its_terminal(start):
    """The terminal signals the whole process group; a restore that runs must not be among those."""
    one = start("""
say(run(["sh", "-c", "ps -o pgid= -p $$"]).stdout.strip() != str(os.getpgrp()))
""")
    assert one.rest() == ["True"]


MERLAB = """
import typer
from merbridge_lab import cli
from merbridge_lab.labs import embedded

class Driver:
    name = "fake"
    context = ""
    def is_up(self): return True
    def require_able(self):
        say("ready")
        polling.poll_until(lambda: False, timeout=60, awaiting="a signal")
    def open(self, **more): raise AssertionError

from merbridge_lab.labs import selection
selection.pick = lambda asked: (Driver(), "asked for")
sys.argv = ["merlab", "restore", *{more!r}]
cli.main()
"""


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda s: str(int(s))
)
def test_the_exit_status_tells_the_signal(start, signum, status):
    one = start(MERLAB.format(more=[]))
    assert "lab: fake" in one.heard()
    assert one.heard() == "ready"
    one.process.send_signal(signum)
    lines = one.rest()
    assert f"merlab: interrupted by {signum.name}" in lines
    assert not any("Traceback" in line for line in lines)
    assert one.process.returncode == status
