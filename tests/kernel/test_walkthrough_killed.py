"""merlab killed or interrupted while it creates or removes a lab: nothing is left, and the next call repairs it."""

from __future__ import annotations

import signal

import pytest
from walkthrough_host import (
    MOMENTS,
    Lab,
    Running,
    differences,
    is_plain,
    kill,
    kill_after,
    left_as_found,
    merlab,
    seconds_of,
)

pytestmark = pytest.mark.kernel

QUICK = ("first_pod", "sidecars", "loading", "flushed")


@pytest.fixture
def host():
    """The host as it is without a lab, which it must be again."""
    with left_as_found() as before:
        yield before


@pytest.mark.parametrize("moment", QUICK)
def test_an_up_killed_leaves_nothing_that_down_does_not_remove(host, moment):
    kill("up", at=lambda: MOMENTS[moment](Lab()))
    assert merlab("down").returncode == 0
    assert differences(host) == {}


@pytest.mark.soak
def test_an_up_goes_on_from_where_one_was_killed(host):  # noqa: ARG001 - looked at afterwards
    kill("up", at=lambda: MOMENTS["first_link"](Lab()))
    done = merlab("up", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert merlab("verify", "-q").returncode == 0


@pytest.mark.soak
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("then", ["down", "up"])
def test_every_moment_of_an_up(host, moment, then):
    kill("up", at=lambda: MOMENTS[moment](Lab()))
    assert merlab(then, "-q").returncode == 0
    if then == "down":
        assert differences(host) == {}
    else:
        assert merlab("verify", "-q").returncode == 0


@pytest.fixture(scope="module")
def length():
    """How long an `up` from nothing takes here, in seconds."""
    merlab("down")
    return seconds_of("up", "-q")


@pytest.mark.soak
@pytest.mark.parametrize("tenth", range(10))
def test_any_instant_of_an_up(length, host, tenth):
    kill_after(length * (tenth + 0.5) / 10, "up")
    assert merlab("down").returncode == 0
    assert differences(host) == {}


def test_a_killed_down_is_gone_on_with(host):
    assert merlab("up", "-q", "--until", "3").returncode == 0
    running = Running("down")
    running.reaches(lambda: not any(pin.name == "connect4" for pin in Lab().pins.links()))
    running.end(signal.SIGKILL)
    assert merlab("down").returncode == 0
    assert differences(host) == {}


@pytest.mark.parametrize("moment", ["first_pod", "first_link"])
def test_a_signal_during_up_leaves_what_down_removes(host, moment):
    running = Running("up")
    assert running.reaches(lambda: MOMENTS[moment](Lab()))
    done = running.end(signal.SIGINT)
    assert done.returncode == 130, done.stdout + done.stderr
    assert is_plain(done)
    assert merlab("down").returncode == 0
    assert differences(host) == {}
