"""The guest with the kind lab: its memory and its disk, and the commands that wait longer where it is emulated."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.guests import inside_kind
from tests.guests.distribution import by_line
from tests.guests.inside import NotHeldError, go_through

from merbridge_lab.adapters import virtual_machine
from merbridge_lab.adapters.virtual_machine import EMULATED, ERR, KVM, OUT
from merbridge_lab.labs.kubernetes import settings


@pytest.fixture
def slow(monkeypatch, tmp_path):
    """Have the commands that wait longer on PATH; the real ones print what they are told."""
    folder = tmp_path / "slow"
    real = tmp_path / "real"
    real.mkdir()
    for name in ("kind", "istioctl"):
        (real / name).write_text('#!/bin/sh\necho "$@"\ncat\n')
        (real / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{real}:/usr/bin:/bin")
    monkeypatch.setattr(inside_kind, "_SLOW", folder)
    inside_kind.wait_longer()


def said(*argv, stdin=""):
    """Return what a command on PATH prints, by its first line and the rest."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=True)
    first, _, rest = done.stdout.partition("\n")
    return first, rest


@pytest.mark.parametrize("by", [EMULATED, KVM])
def test_a_guest_has_the_memory_that_it_is_given(by):
    options = list(virtual_machine._options(Path("/boot/vmlinuz-6.12"), by, "8G"))
    assert options[options.index("-m") + 1] == "8G"
    assert options[options.index("-kernel") + 1] == "/boot/vmlinuz-6.12"


def test_what_a_guest_writes_to_its_disk_is_lost():
    assert list(virtual_machine._disk(None)) == []
    drive = list(virtual_machine._disk(Path("/a,b/docker.img")))[1]
    assert "file=/a,,b/docker.img," in drive
    assert "snapshot=on" in drive


@pytest.mark.usefixtures("slow")
def test_kind_is_told_merlabs_configuration_and_how_long_kubeadm_waits():
    words = ("create", "cluster", "--name", "merbridge", "--config", "-")
    first, rest = said("kind", *words, stdin=(settings.DATA / "manifests/kind.yaml").read_text())
    assert first == " ".join(words)
    told = yaml.safe_load(rest)
    assert told["nodes"][0]["extraMounts"][0]["containerPath"] == "/kind/made-by-merlab"
    patch, _ = told["kubeadmConfigPatches"]
    assert yaml.safe_load(patch)["apiServer"]["timeoutForControlPlane"] == "30m0s"


@pytest.mark.usefixtures("slow")
def test_all_else_is_as_it_is_typed():
    assert said("kind", "get", "kubeconfig", stdin="as it is\n") == ("get kubeconfig", "as it is\n")
    assert said("istioctl", "version")[0] == "version"
    assert said("istioctl", "install", "-y")[0] == "install -y --readiness-timeout 30m --kubeclient-timeout 2m"


def test_a_guest_is_heard_by_line():
    heard = []
    listen = by_line(heard.append)
    for port, text in ((OUT, '{"phase": '), (ERR, ""), (OUT, '1}\n{"phase": 2}\n{"ph')):
        listen(port, text)
    assert heard == ['{"phase": 1}', '{"phase": 2}']


def test_a_phase_is_not_tried_without_what_it_needs(capsys):
    def fail():
        raise NotHeldError("no cluster")

    phases = {"up": fail, "status": lambda: None, "down": lambda: None}
    assert go_through(phases, list(phases), needs={"status": "up"}) == 1
    told = {each["phase"]: each["held"] for each in map(json.loads, capsys.readouterr().out.splitlines())}
    assert told == {"up": False, "down": True}
