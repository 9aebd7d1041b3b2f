"""Logs are read from their ends, cut when they get too long, and a full file system is reported as such (M7)."""

from __future__ import annotations

import os

import pytest

from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import logs


def test_m7_only_the_end_of_a_log_is_read(tmp_path):
    log = tmp_path / "access.log"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    told = logs.tail(log, 100)
    assert told.endswith("line 99999\n")
    assert len(told) <= 100
    assert told.startswith("line ")


def test_a_log_that_is_not_there_has_no_lines(tmp_path):
    assert logs.tail(tmp_path / "none") == ""
    assert logs.Following(tmp_path / "none").lines() == []


def test_m7_a_long_log_is_cut_in_place_and_whoever_appends_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "LONGEST", 1000)
    monkeypatch.setattr(logs, "KEPT", 200)
    log = tmp_path / "access.log"
    with log.open("a") as sidecar:
        sidecar.write("".join(f"line {number}\n" for number in range(500)))
        sidecar.flush()
        before = log.stat().st_ino
        assert logs.cut(log)
        assert log.stat().st_ino == before
        assert log.stat().st_size <= 200
        sidecar.write("one more\n")
        sidecar.flush()
    assert log.read_text().endswith("line 499\none more\n")
    assert log.read_text().startswith("line ")
    assert not logs.cut(log)


def test_a_symlink_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "LONGEST", 10)
    other = tmp_path / "other"
    other.write_text("x" * 100)
    (tmp_path / "access.log").symlink_to(other)
    with pytest.raises(OSError, match="symbolic"):
        logs.cut(tmp_path / "access.log")
    assert other.stat().st_size == 100


def test_following_goes_on_where_it_was_and_survives_a_cut(tmp_path):
    log = tmp_path / "access.log"
    log.write_text("first\n")
    followed = logs.Following(log)
    assert followed.lines() == ["first"]
    with log.open("a") as file:
        file.write("second\nthi")
    assert followed.lines() == ["second"]
    with log.open("a") as file:
        file.write("rd\n")
    assert followed.lines() == ["third"]
    log.write_text("new\n")
    assert followed.lines() == ["new"]


def test_m7_a_full_file_system_is_told_as_full(tmp_path, monkeypatch):
    full = os.statvfs_result((4096, 4096, 131072, 3, 3, 1000, 10, 10, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    with pytest.raises(LabError, match=rf"{tmp_path} is full: 12 of 524288 KiB are left"):
        logs.require_room(tmp_path)
    no_inodes = os.statvfs_result((4096, 4096, 131072, 9999, 9999, 1000, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: no_inodes)
    with pytest.raises(LabError, match="no more files"):
        logs.require_room(tmp_path)
    monkeypatch.undo()
    logs.require_room(tmp_path)


def test_a_fifo_in_a_logs_place_is_not_waited_for(tmp_path):
    """Nobody has its other end: opening it would block until somebody has."""
    os.mkfifo(tmp_path / "access.log")
    with pytest.raises(OSError, match="it is not a plain file"):
        logs.tail(tmp_path / "access.log")
    with pytest.raises(OSError, match="it is not a plain file"):
        logs.opened(tmp_path / "access.log")
    assert not logs.cut(tmp_path / "access.log")
