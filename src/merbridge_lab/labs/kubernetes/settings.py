"""The settings of the lab: versions and images, from the table, from the cluster, from the command line."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from merbridge_lab.errors import LabError, UsageError
from merbridge_lab.labs.kubernetes import dataplanes, settings_schema

if TYPE_CHECKING:
    from collections.abc import Mapping

    from merbridge_lab.labs.options import Options

DATA = resources.files("merbridge_lab") / "data"

#: The lab's own defaults, which --istio-set overrides: a small machine has two cores, and sidecars request a tenth.
_ISTIO = (
    "profile=minimal",
    "meshConfig.accessLogFile=/dev/stdout",
    "values.global.imagePullPolicy=IfNotPresent",
    "values.global.proxy.resources.requests.cpu=10m",
    "values.global.proxy.resources.requests.memory=40Mi",
    "values.pilot.autoscaleEnabled=false",
    "values.pilot.resources.requests.cpu=50m",
    "values.pilot.resources.requests.memory=128Mi",
)


_NOT_THE_MESHS = ("kind_image", "dataplane", "merbridge_manifest")


@functools.lru_cache(maxsize=1)
def versions() -> Mapping[str, Any]:
    """Return data/versions.yaml."""
    return dict(yaml.safe_load((DATA / "versions.yaml").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Settings:
    """All settings of the lab. `images` maps a workload to its image."""

    kind_image: str
    istio_hub: str
    istio_tag: str
    istio_set: tuple[str, ...] = ()
    sidecars: str = "classic"
    images: Mapping[str, str] = field(default_factory=dict)
    dataplane: str = dataplanes.NONE
    merbridge_manifest: str = ""

    @classmethod
    def default(cls) -> Settings:
        """Return the settings of the table."""
        table = versions()
        return cls(
            kind_image=table["kind"]["image"],
            istio_hub=table["istio"]["hub"],
            istio_tag=table["istio"]["tag"],
            images=table["images"],
            dataplane=table["dataplanes"][0],
        )

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Parse what `to_json` wrote, or whoever else may write there. Raise LabError naming what is invalid."""
        table = versions()
        try:
            told = settings_schema.read(
                text, workloads=table["images"], dataplanes=dataplanes.names(), manifests=table["merbridge-manifests"]
            )
        except ValueError as error:
            raise LabError(
                f"the settings of the lab cannot be read from the ConfigMap default/merlab: {error}",
                hint="merlab down && merlab up",
                id="cluster.incomplete",
            ) from error
        images = {name: ref for name, ref in table["images"].items() if name in settings_schema.LATER}
        return cls(**{**told, "images": {**images, **told["images"]}})

    def to_json(self) -> str:
        """Return them as they are stored in the cluster."""
        return json.dumps(asdict(self))

    def asked(self, options: Options) -> Settings:
        """Return them as changed by the request. Raise UsageError for an image of something that has none."""
        if unknown := set(options.images) - set(self.images):
            raise UsageError(
                f"--image {min(unknown)}=…: there is no such workload; there are {', '.join(self.images)}",
                hint="the images of Istio are set by --istio-hub and --istio-tag, the node's by --kind-image",
            )
        return replace(
            self,
            kind_image=options.kind_image or self.kind_image,
            istio_hub=options.istio_hub or self.istio_hub,
            istio_tag=options.istio_tag or self.istio_tag,
            istio_set=options.istio_set or self.istio_set,
            sidecars=options.sidecars or self.sidecars,
            images={**self.images, **options.images},
            dataplane=options.dataplane or self.dataplane,
            merbridge_manifest=self._manifest(options.merbridge_manifest),
        )

    def _manifest(self, asked: str | None) -> str:
        """Return what installs Merbridge; "merlab" is merlab's own, for a lab that was created with another one.

        A file gets its absolute path: the next call may come from another folder.
        """
        if asked is None:
            return self.merbridge_manifest
        if asked == "merlab":
            return ""
        is_file = "://" not in asked and asked not in versions()["merbridge-manifests"]
        return str(Path(asked).absolute()) if is_file and asked else asked

    def differ_from(self, other: Settings) -> list[str]:
        """List the differences in the mesh. The node's image cannot change later; the dataplane compares itself."""
        mine, theirs = self._of_mesh(), other._of_mesh()
        return [name for name in mine if mine[name] != theirs[name]]

    def _of_mesh(self) -> dict[str, Any]:
        told = {**asdict(self), "images": self.of_workloads}
        return {name: value for name, value in told.items() if name not in _NOT_THE_MESHS}

    @property
    def of_workloads(self) -> dict[str, str]:
        """The images of the workloads."""
        return {name: ref for name, ref in self.images.items() if name not in dataplanes.names()}

    # -- settings for istioctl --------------------------------------------------------------------------------------

    def istio(self) -> list[str]:
        """Return the settings for istioctl, "key=value"; the requested ones come last, and so win."""
        native = str(self.sidecars == "native").lower()
        return [
            *_ISTIO,
            f"hub={self.istio_hub}",
            f"tag={self.istio_tag}",
            f"values.pilot.env.ENABLE_NATIVE_SIDECARS={native}",
            *self.istio_set,
        ]

    @property
    def proxy_image(self) -> str:
        """The image of the sidecars, which also has iptables."""
        return f"{self.istio_hub}/proxyv2:{self.istio_tag}"

    def pod_images(self) -> list[str]:
        """List the images that pods of the lab run."""
        return [
            f"{self.istio_hub}/pilot:{self.istio_tag}",
            self.proxy_image,
            *dict.fromkeys(self.of_workloads.values()),
        ]

    # -- what fits together -----------------------------------------------------------------------------------------

    @property
    def kubernetes(self) -> tuple[int, int] | None:
        """The Kubernetes version of the node's image, as far as its tag names it."""
        return _minor(self.kind_image.partition("@")[0].rpartition(":")[2])

    def misfit(self) -> str | None:
        """Describe what is known not to fit together; nothing is known of versions that are not in the table."""
        release = _minor(self.istio_tag)
        if release is None or self.kubernetes is None:
            return None
        supported = versions()["compatible"].get(f"{release[0]}.{release[1]}")
        if supported is None:
            return None
        lowest, highest = (_minor(end) or (0, 0) for end in supported)
        if lowest <= self.kubernetes <= highest:
            return None
        return (
            f"Istio {release[0]}.{release[1]} supports Kubernetes {supported[0]} to {supported[1]},"
            f" and {self.kind_image} has {self.kubernetes[0]}.{self.kubernetes[1]}"
        )

    def require_fit(self) -> None:
        """Raise LabError for versions that are known not to fit together."""
        if misfit := self.misfit():
            raise LabError(
                misfit, hint=f"merlab up --kind-image {versions()['kind']['image']}", id="cluster.other_node"
            )


def _minor(text: str) -> tuple[int, int] | None:
    found = re.match(r"v?(\d+)\.(\d+)(?=[.-]|$)", text)
    return (int(found[1]), int(found[2])) if found else None
