"""merlab killed or interrupted while rules are flushed: none is lost, and no control client is left."""

from __future__ import annotations

import os
import pty
import signal
import subprocess

import pytest
from tests.merlab_cli import MERLAB
from walkthrough_host import LONG, MOMENTS, Lab, Running, environment, is_plain, kill, kill_after, merlab, seconds_of

from merbridge_lab.polling import poll_until

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def lab():
    """A lab that is up, with its rules as they are."""
    merlab("down")
    assert merlab("up", "-q").returncode == 0
    yield Lab()
    assert merlab("down").returncode == 0


@pytest.mark.parametrize("mender", [("restore",), ("up", "--until", "2", "-q"), ("down",)], ids=lambda words: words[0])
def test_a_flush_that_was_killed_is_mended(lab, mender):
    before = lab.rules()
    kill(
        "step", "9", at=lambda: lab.is_flushed and not lab.in_pod("sleep", "iptables-nft-save", "-t", "nat").count("-A")
    )
    assert merlab(*mender).returncode == 0
    if mender == ("down",):
        assert merlab("up", "-q").returncode == 0
    assert lab.rules() == before
    assert not lab.is_flushed


@pytest.fixture(scope="module")
def length(lab):  # noqa: ARG001 - must be up
    """How long step 9 takes here, in seconds."""
    return seconds_of("step", "9", "-q")


@pytest.mark.soak
@pytest.mark.parametrize("tenth", range(10))
def test_any_instant_of_step_9(lab, length, tenth):
    before = lab.rules()
    kill_after(length * (tenth + 0.5) / 10, "step", "9")
    assert merlab("restore").returncode == 0
    assert lab.rules() == before
    assert merlab("up", "-q").returncode == 0
    assert lab.control_pair == []
    assert merlab("verify", "-q").returncode == 0


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGINT,),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM,),
        (signal.SIGHUP,),
        (signal.SIGTERM, signal.SIGINT, signal.SIGINT),
    ],
    ids=["INT", "INT twice", "TERM", "HUP", "TERM, INT twice"],
)
@pytest.mark.parametrize("moment", ["flushed", "twin"])
def test_a_signal_during_step_9_loses_no_rule(lab, moment, signals):
    before = lab.rules()
    running = Running("step", "9")
    assert running.reaches(lambda: MOMENTS[moment](lab))
    done = running.end(*signals)
    # Of signals sent at once, any may be the first to be handled.
    assert done.returncode in {128 + each for each in signals}, done.stdout + done.stderr
    assert is_plain(done)
    assert "interrupted by" in done.stderr
    assert lab.rules() == before
    assert lab.control_pair == []
    assert not lab.is_flushed


def test_ctrl_c_in_a_terminal_reaches_all_and_loses_nothing(lab):
    before = lab.rules()
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [MERLAB, "step", "9"],
        stdin=slave,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # noqa: PLW1509 - takes the terminal
    )
    os.close(slave)
    try:
        assert poll_until(lambda: lab.is_flushed, timeout=LONG, awaiting="the flush")
        os.write(master, b"\x03")
        assert process.wait(timeout=LONG) == 130
    finally:
        os.close(master)
    assert lab.rules() == before
    assert lab.control_pair == []


def test_a_second_merlab_names_the_first(lab):  # noqa: ARG001 - must be up
    running = Running("verify")
    try:
        assert running.reaches(lambda: bool(Lab().control_pair))
        done = subprocess.run(
            [MERLAB, "up"], env=environment(), capture_output=True, text=True, timeout=LONG, check=False
        )
        assert done.returncode == 3
        assert f"(PID {running.process.pid}, since " in done.stderr
        assert is_plain(done)
    finally:
        assert running.end().returncode == 0
