"""What hierarchies of version 1 do to a process, as /proc and their files show it."""

from __future__ import annotations

from pathlib import Path

import pytest

from merbridge_lab.adapters import cgroup_v1

FILES = {
    "/proc/7/cgroup": "4:cpu,cpuacct:/a/b\n3:freezer:/a\n2:pids:/\n0::/merlab/mesh\n",
    "/proc/8/cgroup": "4:cpu,cpuacct:/\n3:freezer:/\n0::/merlab/mesh\n",
    "/proc/self/mounts": (
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
        "cgroup /cg/cpu cgroup rw,relatime,cpu,cpuacct 0 0\n"
        "cgroup /cg/freezer cgroup rw,relatime,freezer 0 0\n"
    ),
}


@pytest.fixture
def files(monkeypatch):
    def give(more):
        told = {Path(name): text for name, text in (FILES | more).items()}
        monkeypatch.setattr(cgroup_v1, "_read", lambda path: told.get(path, "").strip())

    return give


@pytest.mark.parametrize("state", ["FROZEN", "FREEZING"])
def test_p8_a_frozen_process_is_told_with_its_place(files, state):
    files({"/cg/freezer/a/freezer.state": state})
    assert cgroup_v1.frozen(7) == "freezer.state of /cg/freezer/a"
    assert cgroup_v1.frozen(8) == ""


def test_p8_a_process_with_a_share_is_told_with_it(files):
    files({"/cg/cpu/a/b/cpu.cfs_quota_us": "1000\n", "/cg/cpu/a/b/cpu.cfs_period_us": "100000\n"})
    assert cgroup_v1.throttled(7) == "cpu.cfs_quota_us of /cg/cpu/a/b is 1000, of 100000"
    assert cgroup_v1.throttled(8) == ""


@pytest.mark.parametrize("more", [{}, {"/cg/freezer/a/freezer.state": "THAWED", "/cg/cpu/a/b/cpu.cfs_quota_us": "-1"}])
def test_p8_nothing_is_told_where_nothing_holds_it(files, more):
    files(more)
    assert (cgroup_v1.frozen(7), cgroup_v1.throttled(7)) == ("", "")


def test_p8_a_machine_without_version_1_has_none(files):
    files({"/proc/self/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"})
    assert (cgroup_v1.frozen(7), cgroup_v1.throttled(7)) == ("", "")
