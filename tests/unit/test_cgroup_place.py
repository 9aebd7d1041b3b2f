"""Below which cgroup a lab is made: a container's own, so that labs of one name in two containers never meet."""

from __future__ import annotations

import os
from pathlib import PurePath

import pytest

from merbridge_lab.adapters import cgroup
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import host


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


def test_a_container_that_sees_the_machines_process_1(monkeypatch):
    monkeypatch.setattr(host.own_container, "has_machines_pids", lambda: True)
    places = {"/proc/1": "", "/proc/self": "docker/8783/merlab-ct/mesh/sleep/app"}
    monkeypatch.setattr(host.cgroup, "of_machine", lambda process="/proc/1": PurePath(places[str(process)]))
    assert host._above("merlab-ct") == PurePath("docker/8783")
    monkeypatch.setattr(host.own_container, "has_machines_pids", lambda: False)
    assert host._above("merlab-ct") == PurePath()


def test_the_cgroup_of_a_lab_elsewhere_is_left_alone(monkeypatch, tmp_path):
    machine = host.Machine("merlab-none")
    monkeypatch.setattr(machine, "_cgroup_root", tmp_path)
    monkeypatch.setattr(host.cgroup, "processes", lambda _: [])
    monkeypatch.setattr(host.cgroup, "all_processes", lambda _: [0, 0])
    (machine.cgroup / "mesh").mkdir(parents=True)
    assert not machine.exists
    with pytest.raises(LabError, match="is that of a lab in another container") as refused:
        machine._refuse_strangers()
    assert refused.value.id == "cgroup.foreign"
    monkeypatch.setattr(host.cgroup, "all_processes", lambda _: [0, os.getpid()])
    machine._refuse_strangers()
    assert machine.exists
