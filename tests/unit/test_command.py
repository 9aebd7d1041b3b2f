"""The one way to run a command, on real commands."""

import logging
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from merbridge_lab.adapters.command import pasteable, run
from merbridge_lab.errors import LabError


def test_what_a_command_left():
    done = run(["sh", "-c", "echo out; echo err >&2"])
    assert (done.status, done.stdout, done.stderr) == (0, "out\n", "err\n")
    assert done.command == "sh -c 'echo out; echo err >&2'"


def test_a_failure_carries_the_command_and_its_stderr():
    with pytest.raises(LabError) as failed:
        run(["sh", "-c", "echo why >&2; exit 7"])
    assert failed.value.what == "sh failed with exit status 7"
    assert failed.value.stderr == "why"
    assert subprocess.run(shlex.split(failed.value.command), capture_output=True, check=False).returncode == 7


def test_a_status_that_is_expected_is_no_failure():
    assert run(["sh", "-c", "exit 7"], ok=(0, 7)).status == 7
    assert run(["sh", "-c", "exit 255"], ok=range(256)).status == 255
    with pytest.raises(LabError, match="status 8"):
        run(["sh", "-c", "exit 8"], ok=(0, 7))


def test_a_timeout_is_a_failure_and_ends_the_command():
    began = time.monotonic()
    with pytest.raises(LabError) as failed:
        run(["sh", "-c", "echo began >&2; exec sleep 60"], timeout=0.3)
    assert time.monotonic() - began < 10
    assert failed.value.what == "sh did not end within 0.3 s"
    assert "began" in failed.value.stderr


def test_what_the_command_started_ends_with_it(tmp_path):
    told = tmp_path / "pid"
    with pytest.raises(LabError, match="did not end within"):
        run(["sh", "-c", 'sleep 60 & echo $! >"$1"; wait', "sh", str(told)], timeout=0.5)
    state = Path("/proc", told.read_text().strip(), "stat")
    gone = time.monotonic() + 5
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < gone:
        time.sleep(0.05)
    assert time.monotonic() < gone


def test_a_missing_program_is_one_sentence_with_a_hint():
    with pytest.raises(LabError) as failed:
        run(["no-such-program-here", "x"])
    assert failed.value.what == "the command no-such-program-here is not on this machine"
    assert failed.value.hint == "merlab doctor"


def test_a_program_that_is_killed_is_named_with_its_signal():
    with pytest.raises(LabError, match="sh was ended by SIGKILL"):
        run(["sh", "-c", "kill -9 $$"])


def test_arguments_are_never_read_by_a_shell():
    odd = ["a b", "$HOME", "*", "; echo no", "'\"", "", "ünï", "-n"]
    done = run([sys.executable, "-c", "import sys; print(sys.argv[1:])", *odd])
    assert done.stdout.strip() == str(odd)
    assert shlex.split(pasteable(["x", *odd])) == ["x", *odd]


def test_stdin_is_given_and_otherwise_empty():
    assert run(["cat"], stdin="*nat\nCOMMIT\n").stdout == "*nat\nCOMMIT\n"
    assert run(["cat"]).stdout == ""


def test_the_environment_is_replaced_only_if_asked():
    assert run(["printenv"], env={"ONLY": "this"}).stdout == "ONLY=this\n"
    assert f"PATH={os.environ['PATH']}" in run(["printenv"]).stdout.splitlines()


def test_bytes_that_are_no_text_do_not_break_it():
    assert run(["printf", r"a\377b"]).stdout == "a�b"


def test_much_output_is_read_whole():
    assert len(run(["seq", "200000"]).stdout.splitlines()) == 200000


def test_each_command_is_logged_as_it_could_be_pasted(caplog):
    caplog.set_level(logging.DEBUG, logger="merbridge_lab")
    run(["echo", "a b"])
    assert "$ echo 'a b'" in caplog.messages


def test_a_quick_command_is_quick():
    began = time.monotonic()
    for _ in range(10):
        run(["true"])
    assert time.monotonic() - began < 5
