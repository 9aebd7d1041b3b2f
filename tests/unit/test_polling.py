"""Waiting: with a deadline, reporting for what."""

import time

import pytest

from merbridge_lab import polling


@pytest.fixture
def told():
    lines = []
    polling.on_progress(lambda what, seconds: lines.append((what, seconds)))
    yield lines
    polling.on_progress(None)


def test_what_is_true_at_once_is_given_at_once(told):
    began = time.monotonic()
    assert polling.poll_until(lambda: "there", timeout=30, awaiting="it") == "there"
    assert time.monotonic() - began < 5
    assert told == []


def test_it_is_looked_at_again_until_it_is_true(told):
    answers = iter([None, [], 0, "there"])
    assert polling.poll_until(lambda: next(answers), timeout=30, awaiting="it to be there") == "there"
    assert {what for what, _ in told} == {"it to be there"}
    seconds = [seconds for _, seconds in told]
    assert len(seconds) >= 2
    assert seconds == sorted(seconds)
    assert 0 <= seconds[0] < seconds[-1] < 5


def test_at_the_deadline_the_last_answer_is_given_and_it_is_false():
    began = time.monotonic()
    assert polling.poll_until(list, timeout=0.2, awaiting="never") == []
    assert 0.2 <= time.monotonic() - began < 5


def test_it_looks_at_least_once_however_short_the_time():
    looks = []
    assert polling.poll_until(lambda: looks.append(1) or None, timeout=0, awaiting="never") is None
    assert looks


def test_an_error_is_not_waited_away():
    def look():
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        polling.poll_until(look, timeout=30, awaiting="it")


def test_nobody_needs_to_listen():
    polling.on_progress(None)
    assert polling.poll_until(lambda: 1, timeout=1, awaiting="it") == 1
