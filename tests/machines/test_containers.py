"""merlab in containers of a real Docker: with and without rights, seccomp, a writable root; as root and as a user.

What must work works; what cannot says so in one sentence, with what to type next, and changes nothing.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass

import pytest
from tests.machines import containers
from tests.machines.conftest import CHECKOUT, NAME

from merbridge_lab.requirements.privileges import CAPABILITIES

pytestmark = pytest.mark.machines

MERLAB = f"'{CHECKOUT}/.venv/bin/merlab'"
#: Calls merlab, and prints each exit status; then what is left in the container.
CALLS = """cd /; seen() { cut -d' ' -f5 /proc/self/mountinfo; wc -l </proc/net/dev; }
before=$(seen)
for each in "$@"; do
    eval "$merlab $each" </dev/null 2>&1; echo "[$each] $?"
done
ls -A /run | sed 's/^/left: /'
[ "$before" = "$(seen)" ] || echo "left: a mount or an interface"
"""
#: Those that doctor names and Docker does not give by itself.
ADDED = tuple(
    f"--cap-add={each.removeprefix('CAP_')}"
    for each in CAPABILITIES
    if each in {"CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"}
)
UNMASKED = "--security-opt=systempaths=unconfined"
NO_SECCOMP = "--security-opt=seccomp=unconfined"
START = "start this container with: docker run "


@dataclass(frozen=True)
class Container:
    """The options of docker run, what merlab says in the container, and lines of shell that come first there."""

    name: str
    options: tuple[str, ...]
    says: str = ""
    remedy: str = ""
    first: str = ""


WORKS = [
    Container("privileged", ("--privileged",)),
    Container("capabilities", (*ADDED, UNMASKED)),
]
#: Each is the same as one of those in most.
WORKS_TOO = [
    Container("capabilities_without_seccomp", (*ADDED, UNMASKED, NO_SECCOMP)),
    Container("capabilities_and_the_hint", ADDED, first="mount -o remount,rw /proc/sys"),
    Container("privileged_cgroup_namespace", ("--privileged", "--cgroupns=private")),
    Container("privileged_read_only", ("--privileged", "--read-only", "--tmpfs=/run")),
    Container("privileged_read_only_and_the_hint", ("--privileged", "--read-only"), first="mount -t tmpfs tmpfs /run"),
    Container("privileged_no_new_privileges", ("--privileged", "--security-opt=no-new-privileges")),
    Container("privileged_init", ("--privileged", "--init")),
    Container("privileged_little_shared_memory", ("--privileged", "--shm-size=1m")),
    Container("privileged_enough_memory", ("--privileged", "--memory=1g")),
]

LACKS = "root without CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYS_ADMIN"
REFUSED = [
    Container("plain", (), LACKS, f"{START}--privileged"),
    Container("plain_without_seccomp", (NO_SECCOMP, UNMASKED), LACKS, f"{START}--privileged"),
    Container("net_admin", ("--cap-add=NET_ADMIN",), "CAP_SYS_PTRACE, CAP_SYS_ADMIN", f"{START}--privileged"),
    Container("capabilities_masked", ADDED, "kernel.settings", "mount -o remount,rw /proc/sys"),
    Container("capabilities_masked_without_seccomp", (*ADDED, NO_SECCOMP), "kernel.settings", "remount,rw /proc/sys"),
    Container("user", ("--user=1000",), "this requires root", f"{START}--user 0 --privileged"),
    Container(
        "user_no_new_privileges",
        ("--user=1000", "--privileged", "--security-opt=no-new-privileges"),
        "this requires root",
        f"{START}--user 0 --privileged",
    ),
    Container("user_privileged", ("--user=1000", "--privileged"), "this requires root", f"sudo env MERLAB_NAME={NAME}"),
    Container("read_only", ("--privileged", "--read-only"), "Read-only", "mount -t tmpfs tmpfs /run"),
    Container("little_memory", ("--privileged", "--memory=300m"), "MB available by", f"{START}--memory 1g"),
    Container("few_processes", ("--privileged", "--pids-limit=60"), "limits.processes", f"{START}--pids-limit -1"),
]


@pytest.fixture(scope="session")
def docker(debian13, tmp_path_factory):
    if shutil.which("go") is None:
        pytest.skip("no go: the daemon's runc wrapper is built by it")
    try:
        yield containers.start(debian13, tmp_path_factory.mktemp("packing"), NAME, MERLAB)
    finally:
        containers.stop()


def call(docker, container, *words):
    """Call merlab in a container with each of these lines; return what was printed, and the exit statuses."""
    script = f"{container.first}\n{CALLS}"
    said = docker.run(container.options, "sh", "-c", script, "sh", *words)
    assert "Traceback" not in said, said
    assert "internal error" not in said, said
    assert set(re.findall(r"^left: (.*)$", said, re.MULTILINE)) <= {"mount", "xtables.lock"}, said
    return said, [int(each) for each in re.findall(r"^\[.*\] (\d+)$", said, re.MULTILINE)]


@pytest.mark.parametrize(
    "container",
    [*WORKS, *(pytest.param(each, marks=pytest.mark.soak) for each in WORKS_TOO)],
    ids=lambda each: each.name,
)
def test_what_must_work_works(docker, container):
    said, statuses = call(docker, container, "doctor", "up -q", "verify -q", "down")
    assert statuses == [0, 0, 0, 0], said
    assert "up: 10 of 10 steps held" in said
    assert "6 of 6 cells as expected" in said


@pytest.mark.parametrize("container", REFUSED, ids=lambda each: each.name)
def test_what_cannot_work_says_why_and_what_to_type(docker, container):
    said, statuses = call(docker, container, "doctor", "up -q")
    assert statuses == [3, 3], said
    _, _, up = said.partition("\n[doctor] 3\n")
    assert container.says in up, said
    assert f"  → {container.remedy}" in up or container.remedy.startswith("remount"), said
    assert container.remedy in up, said
    assert len(re.findall(r"^merlab: ", up, re.MULTILINE)) == 1, up
    assert len(re.findall(r"^  → ", up, re.MULTILINE)) == 1, up


def test_a_user_with_sudo_in_a_privileged_container(docker):
    typed = f'eval "sudo -n env MERLAB_NAME={NAME} $merlab $each"'
    script = CALLS.replace('eval "$merlab $each"', typed)
    options = ("--privileged", "--user=1000")
    said = docker.run(options, "sh", "-c", script, "sh", "up -q --until 3", "verify -q", "down")
    assert re.findall(r"^\[.*\] (\d+)$", said, re.MULTILINE) == ["0", "0", "0"], said


@pytest.mark.parametrize(
    "options", [(), pytest.param(("--pid=host",), marks=pytest.mark.soak)], ids=["plain", "pid_host"]
)
def test_labs_of_one_name_in_two_containers_and_containers_that_end(docker, options):
    """The kernel has one cgroup hierarchy for all: each lab is in its container's, and leaves with it."""
    first, second = f"{NAME}-a", f"{NAME}-b"

    def merlab(container, words):
        done = docker("exec", container, "sh", "-c", f'eval "$merlab {words}"')
        return done.returncode, done.stdout + done.stderr

    try:
        for each in (first, second):
            docker.run(("--privileged", "--detach", *options), "sleep", "infinity", name=each)
        for each in (first, second):
            assert merlab(each, "up -q")[0] == 0
        status, said = merlab(second, "down")
        assert status == 0, said
        assert "the lab is gone" in said
        status, said = merlab(first, "verify -q")
        assert status == 0, said
    finally:
        docker.remove(first, second)  # the first with its lab; the machine is looked at by _nothing_left
    said = docker.run(("--privileged", *options), "sh", "-c", f"exec {MERLAB} up -q")
    assert "up: 10 of 10 steps held" in said, said
