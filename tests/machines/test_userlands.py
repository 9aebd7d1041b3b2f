"""Other distributions' files, with another Python, BCC, iptables and C library each, under this machine's kernel."""

from __future__ import annotations

import pytest
from tests.machines.conftest import NAME
from tests.machines.userland import PYTHONS, Userland, install, of_release, wheelhouse

pytestmark = pytest.mark.machines

CHECKOUT = "/srv/merlab"


@pytest.fixture(scope="module")
def made(request, tmp_path_factory):
    """Return a release's userland with this checkout set up in it, from wheels."""
    release, folder = request.param, tmp_path_factory.mktemp(request.param)
    (folder / "hold").mkdir()
    base = of_release(release)
    said = install(base, folder / "upper", folder / "hold", wheelhouse(PYTHONS[release]), CHECKOUT)
    assert f"making .venv with Python {PYTHONS[release]}." in said
    return Userland(base, (folder / "upper",), {"MERLAB_NAME": NAME})


@pytest.mark.parametrize("made", ["noble", "resolute"], indirect=True)
def test_it_works_there(made, hold):
    merlab = f"{CHECKOUT}/.venv/bin/merlab"
    done = made.run(f"set -e; for each in doctor up verify down; do {merlab} $each; done", hold, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 of 10 steps held" in done.stdout
    assert "Proved: with 0 NAT rules in sleep" in done.stdout


@pytest.mark.parametrize("made", ["jammy"], indirect=True)
def test_a_bcc_that_is_too_old_is_refused(made, hold):
    done = made.run(f"{CHECKOUT}/.venv/bin/merlab up -q; echo $?; ls -A /run", hold)
    assert "\n3\n" in done.stdout, done.stdout + done.stderr
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("merlab: ")]
    assert "bcc" in line
    assert "0.18" in line
    assert "merlab" not in done.stdout
