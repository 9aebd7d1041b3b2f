"""S2, U4: a lock for each lab, which nobody else can open, and which leaves nothing."""

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from merbridge_lab import lock
from merbridge_lab.errors import LabError


@pytest.fixture
def locks(monkeypatch, tmp_path):
    monkeypatch.setattr(lock, "folder", lambda: tmp_path / "locks")
    return tmp_path / "locks"


def killed(locks, lab="one"):
    """Leave a lock as a killed merlab does."""
    hold = (
        "import os, pathlib, signal; from merbridge_lab import lock\n"
        f"lock.folder = lambda: pathlib.Path({str(locks)!r})\n"
        f"with lock.held({lab!r}, 'up'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", hold], check=False).returncode == -signal.SIGKILL
    assert (locks / f"{lab}.lock").exists()


def test_it_says_who_holds_it_and_goes(locks):
    with lock.held("one", "up"):
        who = lock.holder(locks / "one.lock")
        assert (who.lab, who.command, who.pid) == ("one", "up", os.getpid())
        assert 0 <= time.time() - who.since < 60
    assert not locks.exists()


def test_it_is_held_once(locks):
    with lock.held("one", "up"), lock.held("two", "verify"):
        with (
            pytest.raises(
                LabError, match=r"another merlab command is running: up on the lab one \(PID \d+, since "
            ) as no,
            lock.held("one", "down", again="merlab down --wait"),
        ):
            pass
        assert no.value.hint == "merlab down --wait"
        assert (locks / "one.lock").exists()
    assert not locks.exists()


def test_labs_of_one_name_on_two_dockers_do_not_wait_for_each_other(locks):
    with lock.held("one", "up"), lock.held("one", "up", docker="unix:///run/a.sock"):
        assert len(list(locks.iterdir())) == 2
        with pytest.raises(LabError, match="another merlab"), lock.held("one", "down", docker="unix:///run/a.sock"):
            pass
        with lock.held("one", "down", docker="unix:///run/b.sock"):
            pass
    assert not locks.exists()


def test_what_a_killed_one_left_is_taken_over_and_removed(locks):
    killed(locks)
    with lock.held("one", "verify"):
        assert lock.holder(locks / "one.lock").pid == os.getpid()
    assert not locks.exists()


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_only_its_owner_can_open_it_whatever_the_umask(locks, umask):
    before = os.umask(umask)
    try:
        with lock.held("one", "up"):
            assert locks.stat().st_mode & 0o077 == 0
            assert (locks / "one.lock").stat().st_mode & 0o077 == 0
    finally:
        os.umask(before)


def test_a_folder_that_others_could_open_is_closed(locks):
    locks.mkdir(mode=0o777)
    locks.chmod(0o777)
    with lock.held("one", "up"):
        assert locks.stat().st_mode & 0o777 == 0o700


def test_a_link_is_not_followed(locks, tmp_path):
    locks.symlink_to(tmp_path)
    with pytest.raises(LabError, match="is not a folder of this user"), lock.held("one", "up"):
        pass
    locks.unlink()
    locks.mkdir()
    (locks / "one.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LabError, match="cannot be made"), lock.held("one", "up"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_was_removed_between_opening_and_locking_is_no_lock(locks, monkeypatch):
    real = fcntl.flock
    seen = []

    def flock(descriptor, how):
        real(descriptor, how)
        if not seen:
            (locks / "one.lock").unlink()  # as its holder does at its end
            locks.rmdir()
        seen.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.held("one", "up"):
        assert len(seen) == 2
        assert (locks / "one.lock").stat().st_ino == seen[-1]
    assert not locks.exists()


def _contend(folder, tally):
    lock.folder = lambda: folder
    for _ in range(40):
        with lock.held("one", "up", wait=60):
            seen = int(tally.read_text())
            time.sleep(0.0005)
            tally.write_text(str(seen + 1))


def test_of_many_one_at_a_time_holds_it(locks, tmp_path):
    tally = tmp_path / "tally"
    tally.write_text("0")
    crowd = [multiprocessing.get_context("spawn").Process(target=_contend, args=(locks, tally)) for _ in range(4)]
    for each in crowd:
        each.start()
    for each in crowd:
        each.join(120)
    assert [each.exitcode for each in crowd] == [0] * 4
    assert tally.read_text() == "160"
    assert not locks.exists()


def test_an_entry_that_is_no_entry_is_no_obstacle(locks):
    killed(locks)
    (locks / "one.lock").write_text('{"lab": 7')
    descriptor = os.open(locks / "one.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(LabError, match=r"command is running: on the lab one$"), lock.held("one", "up"):
        pass
    os.close(descriptor)


def test_where_an_ordinary_users_are(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert lock.folder() == tmp_path / "run/merlab.locks"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert lock.folder() == tmp_path / ".cache/merlab.locks"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert lock.folder() == lock.ROOTS
