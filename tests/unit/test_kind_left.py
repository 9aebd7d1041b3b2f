"""What the command kind leaves when it is ended, and what is found of it: real processes, by kind's name."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from merbridge_lab.adapters import kind
from merbridge_lab.errors import LabError

#: Saves images as kind does, in a folder in TMPDIR and by another process, and never comes to an end.
NEVER_ENDS = """#!/bin/sh
mkdir "$TMPDIR/images-tar1"
(while :; do echo images >>"$TMPDIR/images-tar1/images.tar"; sleep 0.05; done) &
echo "$$" >{told}
wait
"""
CHILD = "import sys; from merbridge_lab.adapters import kind; kind.load('merbridge', ['image'])"


def until(look):
    deadline = time.monotonic() + 20
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A folder for what is temporary, and a kind on PATH that never ends."""
    folder, tools = tmp_path / "temporary", tmp_path / "tools"
    folder.mkdir()
    tools.mkdir()
    (tools / "kind").write_text(NEVER_ENDS.format(told=tmp_path / "told"))
    (tools / "kind").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.killpg(int((tmp_path / "told").read_text()), 9)  # it leads a session of its own, and loops for ever


def test_what_a_load_that_was_ended_had_saved_is_removed(monkeypatch, place):
    monkeypatch.setattr(kind, "_LOAD", 1.0)
    with pytest.raises(LabError):
        kind.load("merbridge", ["image"])
    assert (place.parent / "told").exists(), "it had begun"
    assert list(place.iterdir()) == []


def test_what_a_merlab_that_was_killed_had_saved_is_swept_and_not_what_one_that_lives_has(place):
    told = place.parent / "told"
    with subprocess.Popen([sys.executable, "-c", CHILD]) as merlab:
        try:
            until(lambda: told.exists() and told.read_text().strip())
            kind.sweep()
            (folder,) = place.iterdir()
            assert folder.name.startswith(f"merlab-kind-{merlab.pid}-")
        finally:
            merlab.kill()
    os.killpg(int(told.read_text()), 9)
    until(lambda: not Path("/proc", told.read_text().strip()).exists())
    kind.sweep()
    assert list(place.iterdir()) == []


def test_orphans_are_found_among_processes_whose_arguments_are_no_text(tmp_path):
    (tmp_path / "create").write_text("import time\ntime.sleep(60)\n")
    gone = subprocess.Popen(["true"])
    gone.wait()
    argv = [b"kind", b"create", b"cluster", b"--name", b"merlab-test", b"--kubeconfig"]
    argv.append(b"/x/\xff/merlab-kind-%d-x/kubeconfig" % gone.pid)
    with (
        subprocess.Popen(["sh", "-c", "sleep 60; :", b"\xff\xfe"]) as odd,
        subprocess.Popen(argv, executable=sys.executable, cwd=tmp_path) as orphan,
    ):
        try:
            until(lambda: Path("/proc", str(orphan.pid), "cmdline").read_bytes().startswith(b"kind\0"))
            assert kind.at_work("merlab-test") == [orphan.pid]
            kind.end(orphan.pid)
            assert orphan.wait(10) == -15
            kind.end(orphan.pid)
            assert kind.at_work("merlab-test") == []
        finally:
            for one in (odd, orphan):
                one.kill()


HEAD = """
import os, sys
from merbridge_lab.adapters import kind
from merbridge_lab.errors import LabError
"""
KNOWN = """
os.environ["KUBECONFIG"] = sys.argv[1]
try:
    kind.context_in(sys.argv[1], "x")
except LabError as error:
    print(error.what)
print(kind.known("x"))
"""


def as_nobody(text, *arguments):
    """Run Python as an ordinary user; root becomes one for it."""
    become = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*become, sys.executable, "-B", "-c", HEAD + text, *arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture(scope="module")
def nobody():
    done = as_nobody("print('can')")
    if done.stdout != "can\n":
        pytest.skip(f"an ordinary user cannot run this checkout: {(done.stderr.splitlines() or ['?'])[-1]}")
    return as_nobody


def test_another_users_orphan_is_a_sentence(nobody):
    text = "try: kind.end(1)\nexcept LabError as error: print(error.what, error.hint, sep='; ')"
    done = nobody(text)
    assert done.stdout == (
        "a merlab that was killed left a kind at work, process 1, and it is another user's; sudo kill 1\n"
    ), done.stderr


def test_a_kubeconfig_in_a_folder_that_cannot_be_read_is_a_sentence(nobody):
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "config").write_text("{}")
        folder.chmod(0o000 if os.geteuid() else 0o700)
        done = nobody(KNOWN, str(folder / "config"))
        assert done.stdout == f"{folder}/config is no kubeconfig that can be read\nNone\n", done.stderr
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)


def test_a_kubeconfig_that_is_not_there_knows_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    assert kind.context_in(str(tmp_path / "none"), "x") is None
    assert kind.context_in(str(tmp_path / "none" / "none"), "x") is None
    assert kind.context_in(str(tmp_path / "file" / "none"), "x") is None
