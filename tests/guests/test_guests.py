"""Other kernels on this machine's files: the guests keep their promises, and each kernel is as docs/adr/0035 says."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from tests.guests import packages

from merbridge_lab.errors import LabError
from merbridge_lab.guest import boot, debian, kernels

pytestmark = pytest.mark.guests

HERE = Path(__file__).parent.parent.parent
MERLAB = Path(sys.executable).with_name("merlab")
#: A blocking recv() that says EAGAIN, as soon as the socket is in a sockhash; and what redirecting a sender does to it.
HASHED, SENDER = ["recv() beside send()"], ["recv() beside send()", "MSG_ZEROCOPY"]
#: What else is wrong with redirected bytes on every kernel so far.
READ_WRONGLY = ["splice", "MSG_WAITALL", "SO_RCVLOWAT", "MSG_TRUNC", *HASHED]
BY_VERDICT = ["splice", "MSG_WAITALL", "MSG_TRUNC", *HASHED]
#: By release of Debian: what FIONREAD counts, and which ways of reading redirected bytes go wrong.
EXPECTED = {
    "bookworm": ("TCP", ["FIONREAD", *READ_WRONGLY]),
    "trixie": ("BOTH", READ_WRONGLY),
    "trixie-backports": ("BOTH", READ_WRONGLY),
}


@pytest.fixture(scope="module", params=sorted(debian.RELEASES))
def release(request):
    packages.install()
    return request.param


@pytest.fixture(scope="module")
def kernel(release):
    return kernels.of_release(release, print)


@pytest.fixture(scope="module")
def by(kernel):
    return boot.accelerator(kernel)


def machines():
    """Return our children: each runs a guest."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_a_command_runs_as_root_on_this_machines_files_under_that_kernel(kernel, release, by, tmp_path):
    (tmp_path / "here").write_text("from the machine\n")
    script = (
        "uname -r; id -u; cat here; echo lost >here; cat here; echo also lost >/etc/merlab-guest; "
        "grep -c ' cgroup ' /proc/mounts; cat /sys/fs/cgroup/cgroup.procs >/dev/null && echo v2; "
        'ls /sys/class/net; echo "$WORD"; echo on stderr >/dev/stderr; exit 7'
    )
    ran = boot.run(
        kernel,
        ["sh", "-c", script],
        timeout=60,
        folder=tmp_path,
        environment={"WORD": "with 'quotes' and spaces"},
        by=by,
    )
    told = [kernel.version, "0", "from the machine", "lost", "0", "v2", "lo", "with 'quotes' and spaces"]
    assert (ran.status, ran.output.splitlines(), ran.errors) == (7, told, "on stderr\n")
    assert kernel.version.startswith(debian.RELEASES[release])
    assert (tmp_path / "here").read_text() == "from the machine\n"
    assert not Path("/etc/merlab-guest").exists()
    assert machines() == []


def test_its_modules_are_at_hand(kernel, by):
    ran = boot.run(kernel, ["sh", "-c", "modprobe veth && ip link add type veth"], timeout=60, by=by)
    assert (ran.status, ran.errors) == (0, "")


def test_a_command_that_takes_too_long_is_ended_with_its_guest(kernel, by):
    before = time.monotonic()
    with pytest.raises(LabError, match="did not end within 2 s"):
        boot.run(kernel, ["sleep", "3600"], timeout=2, by=by)
    assert time.monotonic() - before < 330
    assert machines() == []


def test_a_panic_is_told_with_the_kernels_own_words(kernel, by):
    with pytest.raises(LabError, match="ended before its command did") as raised:
        boot.run(kernel, ["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 60"], timeout=60, by=by)
    assert "sysrq triggered crash" in raised.value.stderr
    assert machines() == []


def test_what_the_kernel_does_to_sockets_in_a_sockhash(kernel, release, by):
    ran = boot.run(kernel, [sys.executable, "-m", "tests.guests.probed"], timeout=300, folder=HERE, by=by)
    assert ran.status == 0, ran.errors
    found = json.loads(ran.output)
    counts, redirected = EXPECTED[release]
    assert found["counts"] == counts
    assert found["charged"] == 32768
    assert list(found["wrong"].values()) == [HASHED, SENDER, HASHED, redirected]
    # A program that lets everything pass makes readers of TCP's bytes go wrong which do not without it.
    assert list(found["wrong with verdict"].values()) == [BY_VERDICT, BY_VERDICT, redirected]
    for stream in (found["stream"], found["stream with verdict"]):
        assert stream["is_in_order"]
        assert stream["received"] == stream["total"] == 64 << 20
        assert stream["let_in"] < 8 << 20
    assert found["missing helpers"] == []
    assert found["fixes"] == {"mptcp": True, "ktls": True}
    assert (found["out of app"], found["into app"]) == (False, False)


def test_doctor_says_what_follows(kernel, by):
    ran = boot.run(kernel, [str(MERLAB), "doctor", "--json"], timeout=300, folder=HERE, by=by)
    told = json.loads(ran.output)
    checks = {each["name"]: each for each in told["checks"]}
    assert told["able"], [each for each in told["checks"] if each["verdict"] == "fail"]
    assert checks["kernel.version"]["found"] == kernel.version
    assert checks["sockmap.legs"]["found"] == (
        "app sockets: TCP only, because in a sockhash recv() beside send() and MSG_ZEROCOPY differ from TCP on this "
        "kernel"
    )


def test_a4_a_receiver_at_its_memory_limit_makes_no_send_fail(kernel, release, by):
    if release != "trixie":
        pytest.skip("one kernel is enough for this; it takes minutes where it is emulated")

    def seen(*words):
        argv = [sys.executable, "-m", "tests.guests.memory_limit", *words]
        ran = boot.run(kernel, argv, timeout=600, folder=HERE, by=by)
        assert ran.status == 0, ran.errors
        return json.loads(ran.output)

    found = seen()
    assert found["failed"] == []
    assert found["received"] == found["size"]
    assert found["in order"]
    assert found["passed_memory"] > 0
    before = seen("blind")
    assert before["passed_memory"] == 0
    assert before["received"] < before["size"] or before["failed"], "or this test tests nothing"
