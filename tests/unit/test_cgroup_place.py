"""Below which cgroup a lab is made: a container's own, so that labs of one name in two containers never meet."""

from __future__ import annotations

from pathlib import PurePath

import pytest

from merbridge_lab.adapters import cgroup


@pytest.mark.parametrize(
    ("memberships", "place"),
    [
        ("0::/\n", ""),
        ("0::/init.scope\n", ""),
        ("9:name=systemd:/docker/8783\n1:cpu:/docker/8783\n0::/docker/8783\n", "docker/8783"),
        ("0::/docker/8783/init.scope\n", "docker/8783"),
        ("0::/system.slice/docker-8783.scope\n", "system.slice/docker-8783.scope"),
        ("0::/../..\n", ""),
        ("1:cpu:/docker/8783\n", ""),
    ],
    ids=["machine", "systemd", "docker", "systemd_in_docker", "docker_by_systemd", "outside", "version_1"],
)
def test_it_is_the_one_of_process_1(tmp_path, memberships, place):
    (tmp_path / "cgroup").write_text(memberships)
    assert cgroup.of_machine(tmp_path) == PurePath(place)


def test_without_process_1_it_is_the_root(tmp_path):
    assert cgroup.of_machine(tmp_path) == PurePath()
