"""What the command kind leaves when it is ended, and what merlab finds of it: real processes, by kind's name."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from merbridge_lab.adapters import kind_cli
from merbridge_lab.errors import LabError

#: Saves images as kind does, in a folder in TMPDIR and with another process, and never ends.
NEVER_ENDS = """#!/bin/sh
mkdir "$TMPDIR/images-tar1"
(while :; do echo images >>"$TMPDIR/images-tar1/images.tar"; sleep 0.05; done) &
echo "$$" >{told}
wait
"""
CHILD = "import sys; from merbridge_lab.adapters import kind_cli; kind_cli.load('merbridge', ['image'])"


def until(look):
    deadline = time.monotonic() + 20
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A folder for temporary files, and a kind on PATH that never ends."""
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
        os.killpg(int((tmp_path / "told").read_text()), 9)  # it leads a separate session, and loops forever


def test_what_a_load_that_was_ended_had_saved_is_removed(monkeypatch, place):
    monkeypatch.setattr(kind_cli, "_LOAD", 1.0)
    with pytest.raises(LabError):
        kind_cli.load("merbridge", ["image"])
    assert (place.parent / "told").exists(), "it had begun"
    assert list(place.iterdir()) == []


def test_what_a_merlab_that_was_killed_had_saved_is_swept_and_not_what_one_that_lives_has(place):
    told = place.parent / "told"
    with subprocess.Popen([sys.executable, "-c", CHILD]) as merlab:
        try:
            until(lambda: told.exists() and told.read_text().strip())
            kind_cli.sweep()
            (folder,) = place.iterdir()
            assert folder.name.startswith(f"merlab-kind-{merlab.pid}-")
        finally:
            merlab.kill()
    os.killpg(int(told.read_text()), 9)
    until(lambda: not Path("/proc", told.read_text().strip()).exists())
    kind_cli.sweep()
    assert list(place.iterdir()) == []


#: A name that no cluster has.
NAME = "merlab-test"
SHELL = "/bin/sh"


@pytest.fixture
def kinds():
    """Start processes that look more or less like a running kind: programs, arguments, users, marks."""
    with contextlib.ExitStack() as stack:
        # Where every user may go.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        (folder / "create").write_text("read never\n")
        program = folder / "kind"
        shutil.copy(Path(SHELL).resolve(), program)  # as a script of the name "create" it waits for a line
        program.chmod(0o755)

        def start(mark, *, executable=program, name=NAME, **options):
            argv = [b"kind", b"create", b"cluster", b"--name", name.encode(), b"--kubeconfig", b"/x/\xff/kubeconfig"]
            env = {"MERLAB_STARTED_BY": mark} if mark is not None else {}
            process = stack.enter_context(
                subprocess.Popen(argv, executable=executable, cwd=folder, env=env, stdin=subprocess.PIPE, **options)
            )
            stack.callback(process.kill)
            until(lambda: Path("/proc", str(process.pid), "cmdline").read_bytes().startswith(b"kind\0"))
            return process

        yield start


@pytest.fixture
def gone():
    """The mark of a merlab that no longer runs."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = f"{process.pid}:{kind_cli._began(process.pid)}"
    process.communicate(b"\n")
    return mark


def test_orphans_are_found_among_processes_whose_arguments_are_no_text(kinds, gone):
    with subprocess.Popen(["sh", "-c", "sleep 60; :", b"\xff\xfe"]) as odd:
        try:
            orphan = kinds(gone)
            assert kind_cli.at_work(NAME) == [orphan.pid]
            kind_cli.end(orphan.pid, NAME)
            assert orphan.wait(10) == -15
            kind_cli.end(orphan.pid, NAME)
            assert kind_cli.at_work(NAME) == []
        finally:
            odd.kill()


def test_s7_an_orphan_is_known_by_program_user_and_mark_and_nothing_else_is_ended(kinds, gone):
    mine = f"{os.getpid()}:{kind_cli._began(os.getpid())}"
    pid, _, began = mine.partition(":")
    spared = {
        "one of a merlab that lives": kinds(mine),
        "a user's own": kinds(None),
        "another program": kinds(gone, executable=SHELL),
        "another cluster": kinds(gone, name="other"),
        "no mark of merlab's": kinds("1; x"),
    }
    found = kind_cli.at_work(NAME)
    assert {why: one.pid in found for why, one in spared.items()} == dict.fromkeys(spared, False)
    for one in spared.values():
        kind_cli.end(one.pid, NAME)
    assert [why for why, one in spared.items() if one.poll() is not None] == []
    again = kinds(f"{pid}:{int(began) - 1}")
    assert kind_cli.at_work(NAME) == [again.pid], "its PID is another process's by now"


def test_s7_a_process_of_another_user_that_fakes_all_of_it_is_left_alone(kinds, gone, monkeypatch):
    # To somebody else ours is such a one; and if we are root, there is a real one.
    fakes = [kinds(gone)]
    others = [{"user": 65534, "group": 65534, "extra_groups": []}, {"user": 65534}] if os.geteuid() == 0 else []
    for ids in others:
        fakes.append(kinds(gone, **ids))
        assert kind_cli.at_work(NAME) == [fakes[0].pid]
        kind_cli.end(fakes[-1].pid, NAME)
    monkeypatch.setattr(kind_cli.os, "geteuid", lambda: 12345)
    assert kind_cli.at_work(NAME) == []
    kind_cli.end(fakes[0].pid, NAME)
    assert [fake.poll() for fake in fakes] == [None] * len(fakes)


def test_s7_a_kind_that_merlab_starts_has_its_mark(monkeypatch, tmp_path):
    (tmp_path / "kind").write_text('#!/bin/sh\necho "$MERLAB_STARTED_BY" >"$0.mark"\n')
    (tmp_path / "kind").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    kind_cli.create("x", "image", "", network="n")
    assert (tmp_path / "kind.mark").read_text().strip() == f"{os.getpid()}:{kind_cli._began(os.getpid())}"


HEAD = """
import os, sys
from merbridge_lab.adapters import kind_cli
from merbridge_lab.errors import LabError
"""
KNOWN = """
os.environ["KUBECONFIG"] = sys.argv[1]
try:
    kind_cli.context_in(sys.argv[1], "x")
except LabError as error:
    print(error.what)
print(kind_cli.known("x"))
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


def test_what_an_ordinary_user_cannot_see_is_no_orphan_of_theirs(nobody):
    done = nobody("kind_cli.end(1, 'x'); print(kind_cli.at_work('x'))")
    assert done.stdout == "[]\n", done.stderr


def test_a_kubeconfig_in_a_folder_that_cannot_be_read_is_a_sentence(nobody):
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "config").write_text("{}")
        folder.chmod(0o000 if os.geteuid() else 0o700)
        done = nobody(KNOWN, str(folder / "config"))
        assert done.stdout == f"{folder}/config is not a readable kubeconfig\nNone\n", done.stderr
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)


def test_a_kubeconfig_that_is_not_there_knows_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    assert kind_cli.context_in(str(tmp_path / "none"), "x") is None
    assert kind_cli.context_in(str(tmp_path / "none" / "none"), "x") is None
    assert kind_cli.context_in(str(tmp_path / "file" / "none"), "x") is None
