"""What is missing in a container, and which option of its runtime brings it: the assessment, on fake machines."""

import os
from pathlib import Path

import pytest
from test_requirements import machine

from merbridge_lab.adapters import own_container
from merbridge_lab.requirements import host, privileges
from merbridge_lab.requirements import kernel as judged

MEMINFO = {"proc/meminfo": "MemAvailable: 9000000 kB\n"}
V1 = {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "314572800\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "104857600\n",
    "sys/fs/cgroup/memory/memory.stat": "cache 1\ntotal_inactive_file 52428800\n",
    "proc/self/cgroup": "4:memory:/docker/8783\n1:cpu:/docker/8783\n0::/docker/8783\n",
}
V2 = {
    "sys/fs/cgroup/memory.max": "314572800\n",
    "sys/fs/cgroup/memory.current": "104857600\n",
    "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 52428800\n",
    "proc/self/cgroup": "0::/\n",
}
STATUS = "CapEff:\t{0}\nCapBnd:\t{0}\nNoNewPrivs:\t{1}\n"
ALL = "000001ffffffffff"
DEFAULT = "00000000a80425fb"  # Docker's
FIRST = {"pid": 4026531836, "user": 4026531837, "uts": 4026531838}


def container(tmp_path, mark, files=None, **own):
    """Return a root with a runtime's mark, in the machine's namespaces but for those given."""
    spaces = tmp_path / "proc/self/ns"
    spaces.mkdir(parents=True)
    for kind, number in {**FIRST, **own}.items():
        (spaces / kind).symlink_to(f"{kind}:[{number}]")
    return machine(tmp_path, {**(files or {}), **({mark: ""} if mark else {})})


@pytest.mark.parametrize(
    ("mark", "own", "command"),
    [
        (".dockerenv", {"pid": 4026532180, "uts": 4026532178}, "docker"),
        (".dockerenv", {"uts": 4026532178}, "docker"),  # --pid host
        ("run/.containerenv", {"pid": 4026532180}, "podman"),
        (".dockerenv", {}, ""),  # a virtual machine made of an image
        ("", {"pid": 4026532180}, ""),
    ],
    ids=["docker", "pid_host", "podman", "virtual_machine", "unknown"],
)
def test_which_command_starts_this_container(tmp_path, mark, own, command):
    assert own_container.command(container(tmp_path, mark, **own)) == command
    assert own_container.has_machines_pids(tmp_path) == (bool(command) and "pid" not in own)
    assert own_container.command(tmp_path / "none") == ""


@pytest.mark.parametrize(("files", "version"), [(V1, 1), (V2, 2)], ids=["v1", "v2"])
@pytest.mark.parametrize("in_docker", [False, True])
def test_memory_of_a_container(tmp_path, files, version, in_docker):
    root = container(tmp_path, ".dockerenv", {**MEMINFO, **files}, pid=7 if in_docker else FIRST["pid"])
    limit = tmp_path / next(iter(files))
    found = host.memory(root)
    assert (found.verdict, found.found) == ("fail", f"250 MB available by {limit}")
    assert found.hint == ("start this container with: docker run --memory 1g" if in_docker else f"cat {limit}")
    limit.write_text("9223372036854771712\n" if version == 1 else "max\n")
    assert host.memory(root).verdict == "pass"
    limit.write_text(f"{1 << 30}\n")
    assert (host.memory(root).verdict, host.memory(root).found) == ("pass", "8789 MB available")


def test_a_limit_of_processes():
    limits = [(Path("/sys/fs/cgroup/pids"), 4, 60)]
    assert host.judge_processes(limits).hint == "echo max > /sys/fs/cgroup/pids/pids.max"
    assert host.judge_processes(limits, "docker").hint == "start this container with: docker run --pids-limit -1"


@pytest.mark.parametrize(
    ("mark", "hint"),
    [
        ("", "run merlab on the machine itself, or in a privileged container (docker run --privileged)"),
        (".dockerenv", "start this container with: docker run --privileged"),
        ("run/.containerenv", "start this container with: podman run --privileged"),
    ],
    ids=["unknown", "docker", "podman"],
)
def test_root_without_capabilities(monkeypatch, tmp_path, mark, hint):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = privileges.assess(container(tmp_path, mark, {"proc/self/status": STATUS.format(DEFAULT, 0)}, pid=7))
    assert (found.verdict, found.hint) == ("fail", hint)
    assert found.found == "root without CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYS_ADMIN"


@pytest.mark.parametrize(("number", "verdict"), [(FIRST["user"], "pass"), (4026532300, "fail")])
def test_root_of_a_user_namespace_is_root_in_name_only(monkeypatch, tmp_path, number, verdict):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = privileges.assess(container(tmp_path, "", {"proc/self/status": STATUS.format(ALL, 0)}, user=number))
    assert found.verdict == verdict
    assert (found.hint is None) == (verdict == "pass")


@pytest.mark.parametrize(
    ("mark", "bounding", "no_new", "sudo", "typed"),
    [
        ("", DEFAULT, 0, True, True),
        (".dockerenv", ALL, 0, True, True),
        (".dockerenv", DEFAULT, 0, True, False),
        (".dockerenv", ALL, 1, True, False),
        (".dockerenv", ALL, 0, False, False),
    ],
    ids=["machine", "sudo", "capabilities", "no_new_privileges", "no_sudo"],
)
def test_how_a_user_becomes_root(monkeypatch, tmp_path, mark, bounding, no_new, sudo, typed):
    monkeypatch.setattr(privileges.shutil, "which", lambda _: "/usr/bin/sudo" if sudo else None)
    root = container(tmp_path, mark, {"proc/self/status": STATUS.format(bounding, no_new)}, pid=7)
    hint = "merlab up" if typed else "start this container with: docker run --user 0 --privileged"
    assert privileges.as_root("merlab up", root) == hint


def test_what_a_container_may_not_remount(monkeypatch):
    monkeypatch.setattr(judged.os, "statvfs", lambda _: os.statvfs_result((0,) * 8 + (os.ST_RDONLY, 0)))
    monkeypatch.setattr(privileges, "is_beyond_reach", lambda: False)
    assert (judged.settings(Path("/")).hint or "").startswith("mount -o remount,rw ")
    monkeypatch.setattr(privileges, "is_beyond_reach", lambda: True)
    assert judged.settings(Path("/")).hint == privileges.remedy()
