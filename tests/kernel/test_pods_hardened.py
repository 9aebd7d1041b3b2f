"""Pods on other machines, and pods that somebody has changed: created, reported and repaired."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from host_state import as_app, standing_mesh
from walkthrough_host import NAME as WALK
from walkthrough_host import merlab

from merbridge_lab import istio_facts
from merbridge_lab.adapters import cgroup, mounts, netns
from merbridge_lab.adapters.command import run
from merbridge_lab.adapters.files import write_atomic
from merbridge_lab.labs.embedded import certificates, namespaces, shell
from merbridge_lab.polling import poll_until

pytestmark = pytest.mark.kernel

NAME = "merlab-hardened"


@pytest.fixture(scope="module")
def whole():
    with standing_mesh(NAME) as made:
        yield made


@pytest.fixture
def lab(whole):
    if whole.problems():
        whole.ensure()
    return whole


# -- root's umask (M1) -----------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("umask", ["000", "027", "077"])
def test_m1_whatever_roots_umask_is_the_lab_stands_and_is_closed_to_others(umask):
    under = ("sh", "-c", f'umask {umask}; exec "$@"', "sh")
    try:
        done = merlab("up", "-q", prefix=under)
        assert done.returncode == 0, done.stdout + done.stderr
        done = merlab("step", "9", "-q", "--keep", prefix=under)
        assert done.returncode == 0, done.stdout + done.stderr
        top = Path("/run", WALK)
        assert (top / "saved").stat().st_mode & 0o777 == 0o700
        assert not [each for each in top.rglob("*") if each.lstat().st_mode & 0o002 and not each.is_symlink()
                    and each.parent != top / "netns" and "tracing" not in each.parts]  # fmt: skip
        done = merlab("restore", "-q", prefix=under)
        done = merlab("verify", "-q", prefix=under)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        done = merlab("down", prefix=under)
    assert done.returncode == 0, done.stdout + done.stderr


# -- /etc as others have it (M2) -------------------------------------------------------------------------------------

#: Each is applied to a copy of /etc, in a separate mount namespace that represents such a machine.
ETC = {
    "absolute": "mv resolv.conf /mnt/elsewhere; ln -s /mnt/elsewhere resolv.conf",
    "into_run": "mkdir -p /run/merlab-m2; mv resolv.conf hosts /run/merlab-m2; "
    "ln -s /run/merlab-m2/resolv.conf resolv.conf; ln -s /run/merlab-m2/hosts hosts",
    "static": "mkdir static; mv nsswitch.conf static; ln -s /etc/static/nsswitch.conf nsswitch.conf",
    "dangling": "rm resolv.conf; ln -s /nowhere/resolv.conf resolv.conf",
    "missing": "rm hosts resolv.conf nsswitch.conf",
}

STAND = """
import sys
sys.path.insert(0, {tests!r})
from host_state import Lab, curl
from pathlib import Path
before = {{name: Path("/etc", name).is_symlink() or Path("/etc", name).exists() for name in ("hosts", "resolv.conf")}}
lab = Lab("merlab-etc")
try:
    lab.ensure()
    print(lab.problems(), curl(lab.sleep).stdout.startswith("Hello version"))
    print(curl(lab.sleep, url="http://nobody.example:5000/").returncode)
    print(before == {{name: Path("/etc", name).is_symlink() or Path("/etc", name).exists() for name in before}})
finally:
    lab.machine.remove(10)
"""


@pytest.mark.parametrize("kind", ETC)
def test_m2_files_of_etc_that_are_links_or_missing(kind):
    prepare = (
        "set -e; mount -t tmpfs none /mnt; cp -a /etc /mnt/etc; cd /mnt/etc; mount --bind /mnt/etc /etc; cd /etc; "
        f'{ETC[kind]}; cd /; exec "$@"'
    )
    code = STAND.format(tests=str(Path(__file__).parent))
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", prepare, "sh", sys.executable, "-c", code]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    finally:
        for left in Path("/run").glob("merlab-m2/*"):
            left.unlink()
        if Path("/run/merlab-m2").exists():
            Path("/run/merlab-m2").rmdir()
    assert done.stdout.splitlines() == ["[] True", "6", "True"], done.stderr


# -- what others must not see (S8) -----------------------------------------------------------------------------------


def test_s8_a_users_number_opens_no_key_and_no_pod_sees_another_lab(lab):
    key = lab.sleep.folder / "certs" / "key.pem"
    ids = [f"--reuid={istio_facts.SIDECAR_UID}", f"--regid={istio_facts.SIDECAR_UID}", "--clear-groups"]
    done = subprocess.run(["setpriv", *ids, "cat", str(key)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Permission denied" in done.stderr
    other = Path("/run/merlab-other")
    other.mkdir()
    mounts.mount("merlab-other", other, "tmpfs")
    try:
        assert as_app(lab.sleep, "ls", "/run").stdout == f"{NAME}\n"
        assert as_app(lab.sleep, "ls", str(lab.machine.run / "pods")).stdout == "sleep\n"
    finally:
        mounts.take_away(other)


def test_s8_a_shell_leaves_nothing_outside_of_the_lab(lab):
    there = Path(tempfile.gettempdir())
    before = {*there.iterdir()}
    # Not left in order: as if it had been killed.
    argv, _ = shell.shell(lab.sleep, netns=True).__enter__()
    done = subprocess.run([*argv[:-2], "sh", "-c", "command -v iptables"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{lab.machine.run}/shell/nft/iptables")
    assert not [each for each in {*there.iterdir()} - before if "merlab" in each.name]


# -- what somebody has changed is repaired (P2, P4, P8) -------------------------------------------------------------


def test_p2_an_altered_app_is_started_anew(lab):
    script = lab.v1.folder / "app.py"
    pid, honest = lab.v1.app_pid, script.read_text()
    script.write_text(honest.replace("Hello", "Hallo"))
    assert any("app.py is not what merlab put there" in each for each in lab.problems())
    script.write_text(honest)
    assert any("app.py was written after it had started" in each for each in lab.problems())
    lab.ensure()
    assert lab.problems() == []
    assert lab.v1.app_pid not in (pid, None)


def test_p2_a_mount_over_the_script_is_told(lab):
    script = lab.v1.folder / "app.py"
    write_atomic(lab.v1.folder / "copy.py", script.read_text())
    netns.run_inside(lab.v1.mntns, lambda: mounts.bind(lab.v1.folder / "copy.py", script), netns.NEWNS)
    try:
        assert any("sees another app.py than merlab's" in each for each in lab.problems())
    finally:
        netns.run_inside(lab.v1.mntns, lambda: mounts.umount(script), netns.NEWNS)


def test_p4_a_way_around_is_taken_away_and_the_sidecar_of_another_pod_stays(lab):
    pid = lab.v2.sidecar_pid
    run(namespaces.as_root(lab.sleep.netns, ["ip", "rule", "add", "to", "10.244.0.11", "lookup", "100"]))
    assert any("has a rule that is not merlab's" in each for each in lab.problems())
    lab.ensure()
    assert lab.problems() == []
    assert lab.v2.sidecar_pid == pid


@pytest.mark.parametrize("where", ["app", "", ".."])
def test_p8_what_is_frozen_is_told_and_runs_again(lab, where):
    frozen = lab.sleep.cgroup / where / "cgroup.freeze"
    pid = lab.sleep.app_pid
    frozen.write_text("1")
    try:
        assert any("is frozen" in each for each in lab.mesh.problems())
    finally:
        lab.ensure()
    assert lab.problems() == []
    assert lab.sleep.app_pid == pid or where == "app"
    assert not cgroup.is_frozen(lab.sleep.cgroup / "app")


def test_p8_an_authority_that_is_valid_no_more_is_told_and_replaced(lab, monkeypatch):
    path = lab.machine.run / "ca.pem"
    with monkeypatch.context() as then:
        then.setattr(certificates, "_LIFE", dt.timedelta(hours=-1))
        expired = certificates.Authority.fresh()
    write_atomic(path, certificates._pem(expired._key) + expired.certificate, mode=0o600)
    assert any("the certificate of the lab's authority expired at" in each for each in lab.problems())
    lab.ensure()
    assert lab.problems() == []
    assert certificates.Authority.load(path).certificate != expired.certificate


def test_p8_a_limit_of_who_calls_merlab_is_not_handed_on(tmp_path):
    """RLIMIT_FSIZE of merlab's caller would cut the logs; it is not inherited."""
    group = cgroup.find_root(Path("/nowhere")) / "merlab-limits"
    group.mkdir()
    try:
        log = tmp_path / "log"
        argv = namespaces.as_daemon(
            group, Path("/proc/self/ns/net"), Path("/proc/self/ns/mnt"), 0, log, ["sh", "-c", "ulimit -f; ulimit -n"]
        )
        subprocess.run(["sh", "-c", 'ulimit -S -f 1000; exec "$@"', "sh", *argv], check=True, env=os.environ)
        assert poll_until(lambda: log.exists() and len(log.read_text().split()) == 2, timeout=5, awaiting="the daemon")
        assert log.read_text().split()[0] == "unlimited"
    finally:
        cgroup.remove(group, 5)
