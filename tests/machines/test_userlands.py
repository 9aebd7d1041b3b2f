"""Other distributions' files, with another Python, BCC, iptables and C library each, under this machine's kernel."""

from __future__ import annotations

import pytest
from tests.machines.conftest import NAME
from tests.machines.userland import PYTHONS, Userland, install, of_release, wheelhouse

pytestmark = pytest.mark.machines

CHECKOUT = "/srv/merlab"


@pytest.fixture(scope="module")
def made(request, tmp_path_factory):
    """Return a release's userland with this checkout and the tools of its tests set up in it, from wheels."""
    release, folder = request.param, tmp_path_factory.mktemp(request.param)
    (folder / "hold").mkdir()
    base, wheels = of_release(release), wheelhouse(PYTHONS[release], "dev")
    said = install(base, folder / "upper", folder / "hold", wheels, CHECKOUT, dev=True)
    assert f"making .venv with Python {PYTHONS[release]}." in said
    return Userland(base, (folder / "upper",), {"MERLAB_NAME": NAME})


@pytest.mark.soak
@pytest.mark.parametrize("made", ["jammy", "noble", "resolute"], indirect=True)
def test_unit_tests_pass_there(made, hold):
    done = made.run(f"cd {CHECKOUT}; .venv/bin/python -m pytest -q -p no:cacheprovider tests/unit", hold, timeout=1800)
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr


@pytest.mark.parametrize("made", ["noble", "resolute"], indirect=True)
def test_it_works_there(made, hold):
    merlab = f"{CHECKOUT}/.venv/bin/merlab"
    done = made.run(f"set -e; for each in doctor up verify down; do {merlab} $each; done", hold, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 of 10 steps held" in done.stdout
    assert "Proved: with 0 NAT rules in sleep" in done.stdout


@pytest.mark.parametrize("made", ["jammy"], indirect=True)
def test_a_bcc_that_is_too_old_is_refused(made, hold):
    done = made.run(f"{CHECKOUT}/.venv/bin/merlab up; echo $?; ls -A /run", hold)
    assert done.stdout.splitlines()[0] == "3", done.stdout + done.stderr
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("merlab: ")]
    assert "bcc" in line
    assert "0.18" in line
    assert "merlab" not in done.stdout
