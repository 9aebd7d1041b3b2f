"""Commands that take long: checked while they run, and reported."""

import time

import pytest

from merbridge_lab import polling
from merbridge_lab.adapters.command import run
from merbridge_lab.errors import LabError


def test_what_is_seen_to_be_hopeless_is_ended_with_that_error():
    began = time.monotonic()
    with pytest.raises(LabError, match="Insufficient cpu"):
        run(["sleep", "30"], timeout=60, look=lambda: LabError("Insufficient cpu"))
    assert time.monotonic() - began < 10


def test_what_is_fine_is_left_alone():
    looks = []
    assert run(["sleep", "1.5"], timeout=60, look=lambda: looks.append(1)).status == 0
    assert looks


def test_who_looks_may_fail_to_see():
    def look():
        raise LabError("the API does not answer")

    assert run(["sleep", "1.5"], timeout=60, look=look).status == 0


def test_the_time_limit_still_counts():
    with pytest.raises(LabError, match=r"did not end within 0\.5 s"):
        run(["sleep", "30"], timeout=0.5, look=lambda: None)


def test_it_is_said_what_goes_on():
    told = []
    polling.on_progress(lambda what, seconds: told.append((what, seconds)))
    try:
        with polling.progress("kind makes the cluster"):
            time.sleep(0.7)
    finally:
        polling.on_progress(None)
    assert told
    assert told[0][0] == "kind makes the cluster"
    assert told[0][1] > 0


def test_what_is_awaited_may_change_meanwhile():
    told = []
    polling.on_progress(lambda what, _seconds: told.append(what))
    names = iter(["a place", "its image", "its image", "its image"])
    try:
        polling.poll_until(lambda: None, timeout=0.05, every=0.05, awaiting=lambda: next(names, "more"))
    finally:
        polling.on_progress(None)
    assert told[:2] == ["a place", "its image"]
