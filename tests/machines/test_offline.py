"""A bare Debian 13 without a network: `make up` with a folder of `make offline`, and nothing else."""

from __future__ import annotations

import pytest
from tests.machines.conftest import CHECKOUT, NAME
from tests.machines.userland import BARE, Userland, copy_checkout, of_release, offline

pytestmark = pytest.mark.machines

#: The blank is on purpose; the tree has a folder brought along at /wheels.
FOLDER = "/srv/off line"
THERE = f"mkdir '{FOLDER}'; mount --bind /wheels '{FOLDER}'; cd '{CHECKOUT}'"
#: What apt is told, and what it keeps of that: neither is to change.
APT = "cat /etc/apt/sources.list; ls -R /etc/apt; ls -R /var/lib/apt/lists /var/cache/apt"


@pytest.fixture(scope="module")
def folder():
    return offline("trixie")


@pytest.fixture
def bare(tmp_path):
    """Return a tree with this checkout, and nothing of what merlab needs."""
    copy_checkout(tmp_path / "checkout" / CHECKOUT[1:])
    return Userland(of_release("trixie", BARE), (tmp_path / "checkout",), {"MERLAB_NAME": NAME})


def test_up_from_nothing(bare, folder, hold):
    done = bare.run(
        f"""set -e; {THERE}
        for each in make python3 iptables nft curl bpftool; do ! command -v $each; done
        before=$({APT})
        dpkg -i '{FOLDER}'/packages/make_*.deb >/dev/null
        make up OFFLINE='{FOLDER}'
        .venv/bin/merlab verify
        make down
        [ "$before" = "$({APT})" ]
        [ -z "$(find /tmp -name apt.conf)" ]
        """,
        hold,
        wheels=folder,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 of 10 steps held" in done.stdout
    assert "Proved: with 0 NAT rules in sleep" in done.stdout


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/nowhere", "OFFLINE=/nowhere: there is no such folder"),
        ("/srv", "OFFLINE=/srv: scripts/offline did not make that folder, or not to its end"),
    ],
)
def test_another_folder_is_refused(bare, folder, hold, place, said):
    done = bare.run(f"{THERE}; OFFLINE={place} scripts/setup packages", hold, wheels=folder)
    assert done.returncode == 3
    assert done.stderr.startswith(f"set-up: {said}")
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_that_lacks_something_says_what(bare, folder, hold):
    done = bare.run(
        f"""{THERE}; mkdir -p /srv/part/wheels; cp -r '{FOLDER}/packages' /srv/part
        sed -i '/^Package: libbpfcc$/,/^$/d' /srv/part/packages/Packages
        OFFLINE=/srv/part scripts/setup packages; echo "exit $?"; ls .venv""",
        hold,
        wheels=folder,
    )
    assert "exit 3" in done.stdout
    assert "libbpfcc" in done.stderr
    assert "set-up: apt-get could not install" in done.stderr


def test_an_ordinary_user_takes_it_by_sudo(debian13, folder, hold):
    done = debian13.run(
        f"""{THERE}; dpkg --remove --force-depends curl >/dev/null; chmod 755 /wheels
        su free -c "make setup OFFLINE='{FOLDER}'"; echo "exit $?"; command -v curl; find . -user root -newer README.md
        """,
        hold,
        wheels=folder,
    )
    assert "exit 0\n/usr/bin/curl\n" in done.stdout, done.stdout + done.stderr
    assert done.stdout.endswith("/usr/bin/curl\n")  # and no file of root's in the checkout
    assert "set-up: installing what is missing: curl" in done.stderr
    assert "/packages ./ curl" in done.stderr
