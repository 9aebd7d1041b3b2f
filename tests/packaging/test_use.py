"""Wheel and sdist are not only built but used: installed as people do it, they bring a lab up and take it down.

As root and with PyPI, by `make test-packages`. Each lab has a separate name.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "merlab-packaging"
LONG = 240

pytestmark = pytest.mark.packaging


def call(*argv, status=0, **changes):
    """Call a command as somebody would who knows nothing of this checkout."""
    cwd = changes.pop("cwd", "/")
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MERLAB_", "PYTHON", "VIRTUAL_ENV", "MAKE", "MFLAGS", "ARGS"))
    }
    environment = {**kept, "MERLAB_NAME": NAME, "NO_COLOR": "1", **changes}
    done = subprocess.run(
        [str(each) for each in argv],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG,
    )
    assert done.returncode == status, f"{argv}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The sdist, and the wheel built from it: by the hatchling of the lock, in this environment."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index")
    call(*pip, "-w", folder, sdist)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture
def empty(tmp_path):
    """A virtual environment with pip alone."""
    folder = tmp_path / "env"
    call(sys.executable, "-m", "venv", folder)
    return folder


def bring_up_and_down(merlab):
    try:
        report = json.loads(call(merlab, "up", "--lab", "embedded", "--json"))
        assert (report["verdict"], report["skipped"]) == ("pass", 0)
        assert Path("/run", NAME).exists()
    finally:
        call(merlab, "down", "--lab", "embedded")
    assert not Path("/run", NAME).exists()


def test_the_wheel_by_pip(built, empty):
    """With the newest versions its ranges allow."""
    call(empty / "bin/python", "-m", "pip", "install", "-q", built[1])
    call(empty / "bin/python", "-m", "pip", "check")
    bring_up_and_down(empty / "bin/merlab")


def test_the_wheel_by_uv_as_a_tool(built, empty, tmp_path):
    call(empty / "bin/python", "-m", "pip", "install", "-q", "uv")
    home = {"HOME": str(tmp_path), "UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    uv = (empty / "bin/uv", "tool", "install", "-q", "--no-python-downloads", "--python", sys.executable)
    call(*uv, built[1], **home)
    bring_up_and_down(tmp_path / "bin/merlab")


def test_the_sdist_by_make(built, tmp_path):
    """Unpacked elsewhere, in a folder with a blank: set-up, lab, and all its checks of the source."""
    with tarfile.open(built[0]) as archive:
        archive.extractall(tmp_path / "un packed", filter="data")
    (folder,) = (tmp_path / "un packed").iterdir()
    make = shutil.which("make") or "make"
    try:
        call(make, "up", cwd=folder)
        assert Path("/run", NAME).exists()
    finally:
        call(make, "down", cwd=folder)
    assert not Path("/run", NAME).exists()
