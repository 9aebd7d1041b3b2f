"""The test cluster's table of versions agrees with the go.mod files that also pin them."""

from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parents[1] / "cluster"
VERSIONS = yaml.safe_load((CLUSTER / "versions.yaml").read_text())


@pytest.mark.parametrize("name", VERSIONS["modules"])
def test_go_mod_requires_what_the_table_says(name: str) -> None:
    module = VERSIONS["modules"][name]
    lines = (CLUSTER / "go" / name / "go.mod").read_text().splitlines()
    pinned = {tuple(line.removeprefix("require").split()) for line in lines}
    assert not module or (module["module"], module["version"]) in pinned


def test_kubernetes_staging_modules_are_of_the_same_release() -> None:
    release = VERSIONS["modules"]["kubernetes"]["version"].removeprefix("v1.")
    replaced = [
        line.split()[-1] for line in (CLUSTER / "go/kubernetes/go.mod").read_text().splitlines() if "=>" in line
    ]
    assert replaced
    assert set(replaced) == {f"v0.{release}"}


@pytest.mark.parametrize("name", VERSIONS["images"])
def test_an_image_has_its_folder_and_a_name_that_no_registry_serves(name: str) -> None:
    spec = VERSIONS["images"][name]
    assert spec["ref"].startswith("merlab.test/")
    assert name == "base" or (CLUSTER / "images" / spec.get("folder", name) / "Dockerfile").is_file()


def test_what_merlab_is_told_is_what_is_built() -> None:
    told, images = VERSIONS["merlab"], VERSIONS["images"]
    assert set(told["images"].values()) <= set(images)
    for name in ("pilot", "proxyv2"):
        assert images[name]["ref"] == f"{told['istio-hub']}/{name}:{told['istio-tag']}"
