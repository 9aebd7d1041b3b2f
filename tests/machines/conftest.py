"""A userland of another distribution with merlab installed in it; and what carries a lab's name on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.machines.userland import Userland, cache, install, of_release, wheelhouse

from merbridge_lab.polling import poll_until

NAME = "merlab-machines"
#: Where the checkout is there. The blank is on purpose.
CHECKOUT = "/srv/a lab"


@pytest.fixture(scope="session")
def wheels():
    """Return a folder with all of the lock's wheels for Debian 13's Python: pip there has no network."""
    return wheelhouse("3.13")


@pytest.fixture
def hold(tmp_path):
    (tmp_path / "hold").mkdir()
    return tmp_path / "hold"


@pytest.fixture(scope="session")
def debian13(wheels, tmp_path_factory):
    """Return Debian 13's userland, with this checkout and its .venv, made there by scripts/setup without a network."""
    made = tmp_path_factory.mktemp("debian13")
    (made / "hold").mkdir()
    users = (
        "for each in free asked none; do useradd -m -s /bin/bash $each; done; echo asked:secret | chpasswd; "
        "echo 'free ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/t; echo 'asked ALL=(ALL) ALL' >>/etc/sudoers.d/t"
    )
    base = of_release("trixie")
    said = install(base, made / "upper", made / "hold", wheels, CHECKOUT, first=users, user="free")
    assert "making .venv with Python 3.13" in said
    return Userland(base, (made / "upper",), {"MERLAB_NAME": NAME})


@pytest.fixture(autouse=True)
def _nothing_left(request):
    """Hold that this machine is as before, as far as something carries the lab's name."""
    assert named() == []
    mounts = _mounts()
    yield
    # Whoever was killed may still be waiting for its parent, or for process 1, to take note of it.
    poll_until(lambda: not named(), timeout=20, awaiting="the lab's processes to be gone")
    assert named() == []
    assert _mounts() == mounts, request.node.name


def _mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    # Those of another run's daemon, and of a tree that is being made, are not ours.
    return [line.split(" ", 4)[4] for line in lines if "/run/merlab" not in line and str(cache()) not in line]


def named() -> list[str]:
    """Return the cgroups, processes and files of this machine that belong to the lab of these tests."""
    groups = [str(each) for each in Path("/sys/fs/cgroup").glob(f"**/{NAME}*") if each.is_dir()]
    processes = []
    for each in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            if f"/{NAME}" in each.read_text():
                processes.append(each.parent.name)
        except OSError:
            continue
    places = [str(each) for place in ("/run", "/tmp") for each in Path(place).glob(f"{NAME}*")]  # noqa: S108
    return groups + processes + places
