"""Mounts that replace what merlab put there, told from those that are merlab's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from merbridge_lab.adapters import mounts
from merbridge_lab.labs.embedded import lab_paths

RUN, CGROUP = Path("/run/merlab"), Path("/sys/fs/cgroup/merlab")
HEALTHY = """\
27 1 254:0 / / rw - ext4 /dev/vda rw
30 27 0:24 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
275 27 0:55 / /run/merlab rw,nosuid,nodev - tmpfs merlab rw
276 275 0:56 / /run/merlab/bpf rw - bpf none rw
277 275 0:13 / /run/merlab/tracing rw - tracefs none rw
278 275 0:4 net:[11] /run/merlab/netns/node rw - nsfs nsfs rw
279 275 254:0 /envoy /run/merlab/envoy rw - ext4 /dev/vda rw
280 275 0:4 net:[12] /run/merlab/netns/sleep rw - nsfs nsfs rw
281 275 0:4 mnt:[13] /run/merlab/mnt/sleep rw - nsfs nsfs rw
290 27 0:60 / /run/merlab-other rw - tmpfs merlab-other rw
"""


def strangers(more: str) -> list[tuple[str, str]]:
    table = mounts.parse((HEALTHY + more).encode())
    return [(str(each.target), each.root) for each in lab_paths.strangers(RUN, "merlab", CGROUP, table)]


def test_a_healthy_lab_has_no_strangers():
    assert strangers("") == []


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ("300 280 0:4 net:[11] /run/merlab/netns/sleep rw - nsfs nsfs rw\n", ("/run/merlab/netns/sleep", "net:[11]")),
        ("300 275 0:4 mnt:[9] /run/merlab/netns/other rw - nsfs nsfs rw\n", ("/run/merlab/netns/other", "mnt:[9]")),
        ("300 275 0:70 / /run/merlab/netns rw - tmpfs none rw\n", ("/run/merlab/netns", "/")),
        ("300 276 0:71 / /run/merlab/bpf rw - bpf none rw\n", ("/run/merlab/bpf", "/")),
        ("300 275 0:72 / /run/merlab rw - tmpfs merlab rw\n", ("/run/merlab", "/")),
        ("300 275 0:73 / /run/merlab/pods/sleep/certs rw - tmpfs none rw\n", ("/run/merlab/pods/sleep/certs", "/")),
        ("300 279 254:0 /other /run/merlab/envoy rw - ext4 /dev/vda rw\n", ("/run/merlab/envoy", "/other")),
        ("300 30 0:74 / /sys/fs/cgroup/merlab/mesh rw - tmpfs none rw\n", ("/sys/fs/cgroup/merlab/mesh", "/")),
    ],
)
def test_what_is_not_merlabs_is_a_stranger(more, found):
    assert strangers(more) == [found]


def test_what_is_mounted_elsewhere_is_none():
    assert strangers("300 290 0:80 / /run/merlab-other/bpf rw - bpf none rw\n") == []


def test_one_namespace_under_two_names_is_told():
    table = mounts.parse((HEALTHY + "300 275 0:4 net:[12] /run/merlab/netns/v1 rw - nsfs nsfs rw\n").encode())
    (found,) = lab_paths._doubtful(RUN, table)
    assert found == (RUN / "netns/v1", "the same namespace as /run/merlab/netns/sleep (net:[12])")


def test_the_machines_namespace_under_a_pods_name_is_told():
    own = Path("/proc/self/ns/net").stat().st_ino
    line = f"300 275 0:4 net:[{own}] /run/merlab/netns/v1 rw - nsfs nsfs rw\n"
    (found,) = lab_paths._doubtful(RUN, mounts.parse((HEALTHY + line).encode()))
    assert found[1] == "the network namespace of the machine itself"


def test_links_and_the_like_are_told_and_taken_away(tmp_path):
    (tmp_path / "pods").mkdir()
    (tmp_path / "pods/file").write_text("stays")
    (tmp_path / "netns").symlink_to("pods")
    os.mkfifo(tmp_path / "pods/access.log")
    found = dict(lab_paths.links(tmp_path))
    assert found == {tmp_path / "netns": "a symbolic link", tmp_path / "pods/access.log": "a FIFO"}
    lab_paths.tidy(tmp_path)
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["file", "pods"]


def test_the_tools_of_a_persons_shell_are_links_by_design(tmp_path):
    (tmp_path / "shell/nft").mkdir(parents=True)
    (tmp_path / "shell/nft/iptables").symlink_to("/usr/sbin/iptables-nft")
    (tmp_path / "pods").mkdir()
    (tmp_path / "pods/shell").symlink_to("/")
    assert [path for path, _ in lab_paths.links(tmp_path)] == [tmp_path / "pods/shell"]


def test_a_lab_that_cannot_be_reached_is_hidden_by_what_came_later():
    table = mounts.parse((HEALTHY + "300 27 0:90 / /run rw - tmpfs none rw\n").encode())
    lab = lab_paths.own(RUN.with_name("merlab-no-such"), "merlab", table)
    assert lab is None
    run = Path("/run/merlab-gone-for-sure")
    text = HEALTHY.replace("/run/merlab ", f"{run} ") + "300 27 0:90 / /run rw - tmpfs none rw\n"
    table = mounts.parse(text.encode())
    lab = lab_paths.own(run, "merlab", table)
    assert lab_paths.hidden_by(run, lab, table) == Path("/run")
