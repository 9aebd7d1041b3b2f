"""This merlab takes over a lab of an older one, or refuses it in a sentence with the one command.

The older one is installed from this repository's own history, with its own dependencies beside it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: The last commit before every reading of a lab was judged again.
OLDER = "aaab070"
NAME = "merlab-older"
LONG = 240

pytestmark = pytest.mark.packaging


def call(*argv):
    """Call a command. While another lab's merlab is running, which stops the older one, wait and call again."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MERLAB_", "PYTHON", "VIRTUAL_ENV", "MAKE", "ARGS"))
    }
    environment = {**kept, "MERLAB_NAME": NAME, "NO_COLOR": "1"}
    until = time.monotonic() + LONG
    while True:
        done = subprocess.run(
            [str(each) for each in argv],
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=LONG,
        )
        busy = done.returncode == 3 and "another merlab command is running" in done.stdout + done.stderr
        if not busy or time.monotonic() > until:
            return done
        time.sleep(1)


def must(*argv, status=0):
    done = call(*argv)
    assert done.returncode == status, f"{argv}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def older(tmp_path_factory):
    """The older merlab's command."""
    folder = tmp_path_factory.mktemp("older")
    git = ("git", "-c", "safe.directory=*", "-C", ROOT)
    if call(*git, "cat-file", "-e", f"{OLDER}^{{commit}}").returncode:
        pytest.fail(f"commit {OLDER} is not in this clone: git fetch --unshallow")
    must(*git, "archive", "-o", folder / "source.tar", OLDER)
    (folder / "source").mkdir()
    must("tar", "-xf", folder / "source.tar", "-C", folder / "source")
    python = folder / "env/bin/python"
    must(sys.executable, "-m", "venv", folder / "env")
    pip = (python, "-m", "pip", "install", "-q")
    must(*pip, "--require-hashes", "--only-binary", ":all:", "-r", ROOT / "requirements/run.txt")
    must(*pip, "--no-deps", "--no-build-isolation", folder / "source")
    return python.with_name("merlab")


@pytest.fixture
def newer():
    return Path(sys.executable).with_name("merlab")


@pytest.fixture
def lab(older, newer):
    """A lab created by the older merlab."""
    report = json.loads(must(older, "up", "--lab", "embedded", "--json"))
    assert report["verdict"] == "pass"
    yield
    must(newer, "down", "--lab", "embedded")
    assert not Path("/run", NAME).exists()


@pytest.mark.usefixtures("lab")
def test_an_older_lab_is_seen_verified_and_taken_over(newer):
    assert json.loads(must(newer, "status", "--json"))["up"] is True
    done = call(newer, "verify")
    # `up` repairs what the newer one has otherwise; verify may report it, but nothing else.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    if done.returncode:
        assert re.search(r"→ .*merlab up\n", done.stdout + done.stderr)
    assert json.loads(must(newer, "up", "--json"))["verdict"] == "pass"
    assert json.loads(must(newer, "verify", "--json"))["verdict"] == "pass"


@pytest.mark.usefixtures("lab")
def test_what_an_older_merlab_flushed_is_put_back(older, newer):
    must(older, "step", "9", "--keep", "--json")
    assert json.loads(must(newer, "status", "--json"))["flushed"] == ["sleep"]
    must(newer, "restore")
    assert json.loads(must(newer, "status", "--json"))["flushed"] == []
    assert json.loads(must(newer, "up", "--json"))["verdict"] == "pass"
    assert json.loads(must(newer, "verify", "--json"))["verdict"] == "pass"


@pytest.mark.usefixtures("lab")
def test_up_puts_back_what_an_older_merlab_flushed(older, newer):
    must(older, "step", "9", "--keep", "--json")
    assert json.loads(must(newer, "up", "--json"))["verdict"] == "pass"
    assert json.loads(must(newer, "status", "--json"))["flushed"] == []
