"""The options of labs on clusters, converted to what drivers take."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from merbridge_lab.cli.app import not_empty
from merbridge_lab.labs.kubernetes import dataplanes
from merbridge_lab.labs.options import IMAGE, Options

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The panel of the help that these options are in, and no other.
PANEL = "Labs on a cluster"


class Sidecars(str, Enum):
    """Where istio-proxy is in a pod: among the containers, or among the init containers."""

    CLASSIC = "classic"
    NATIVE = "native"


def dataplane_names(incomplete: str = "") -> list[str]:
    """List what --dataplane takes and begins so: each dataplane that this version has."""
    return [name for name in dataplanes.names() if name.startswith(incomplete)]


def dataplane(given: str) -> str:
    """Return the name of a dataplane as it was given. Raises BadParameter."""
    if given not in (known := dataplane_names()):
        raise typer.BadParameter(f"{given!r} is not one of {', '.join(map(repr, known))}.")
    return given


DataplaneOption = Annotated[
    str | None,
    typer.Option(
        "--dataplane",
        rich_help_panel=PANEL,
        parser=dataplane,
        autocompletion=dataplane_names,
        metavar=f"<{'|'.join(dataplane_names())}>",
        help="Dataplane: none, upstream's merbridge, or merlab's own.",
    ),
]
SidecarsOption = Annotated[
    Sidecars | None,
    typer.Option("--sidecars", rich_help_panel=PANEL, help="Sidecar type (default: classic)."),
]
KubeconfigOption = Annotated[
    str | None,
    typer.Option(
        "--kubeconfig",
        metavar="FILE",
        rich_help_panel=PANEL,
        callback=not_empty,
        help="Write the context kind-merbridge to FILE (default: change no kubeconfig).",
    ),
]
ContextOption = Annotated[
    str | None,
    typer.Option("--context", metavar="NAME", rich_help_panel=PANEL, help="Context; the kind lab's is kind-merbridge."),
]
KindImageOption = Annotated[
    str | None, typer.Option("--kind-image", metavar="REF", rich_help_panel=PANEL, help="The node's image.")
]
IstioHubOption = Annotated[
    str | None,
    typer.Option("--istio-hub", metavar="HUB", rich_help_panel=PANEL, help="Registry of Istio's images."),
]
IstioTagOption = Annotated[
    str | None, typer.Option("--istio-tag", metavar="TAG", rich_help_panel=PANEL, help="Istio's version.")
]
IstioSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--istio-set",
        metavar="KEY=VALUE",
        rich_help_panel=PANEL,
        help="Passed to istioctl install --set; may be repeated.",
    ),
]
ImageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        metavar="NAME=REF",
        rich_help_panel=PANEL,
        help="The image of sleep, helloworld-v1, helloworld-v2, merbridge or merlab; may be repeated.",
    ),
]
MerbridgeManifestOption = Annotated[
    str | None,
    typer.Option(
        "--merbridge-manifest",
        metavar="URL|FILE|release|main|merlab",
        rich_help_panel=PANEL,
        help="The manifest of Merbridge (default: merlab's own); release and main are upstream's.",
    ),
]
KeepClusterOption = Annotated[
    bool,
    typer.Option("--keep-cluster", rich_help_panel=PANEL, help="Remove only what was put into the cluster."),
]


def pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """Parse "KEY=VALUE" for each time that it was given. Raises BadParameter."""
    read = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise typer.BadParameter(f"{option} {text}: expected {option} NAME=VALUE")
        read[key] = value
    return read


def reference(option: str, given: str, ref: str | None = None) -> None:
    """Check that the given value is the name of an image, `ref` or the value itself. Raises BadParameter."""
    if not IMAGE.fullmatch(given if ref is None else ref):
        raise typer.BadParameter(
            f"{option} {given}: that is no image; one is named as docker.io/curlimages/curl:8.16.0"
        )


def options(
    *,
    dataplane: str | None = None,
    sidecars: Sidecars | None = None,
    kubeconfig: str | None = None,
    context: str | None = None,
    kind_image: str | None = None,
    istio_hub: str | None = None,
    istio_tag: str | None = None,
    istio_set: Sequence[str] | None = None,
    images: Sequence[str] | None = None,
    merbridge_manifest: str | None = None,
    keep_cluster: bool = False,
) -> Options:
    """Collect the given options. Raises BadParameter."""
    pairs("--istio-set", istio_set)
    named = pairs("--image", images)
    for name, ref in named.items():
        reference("--image", f"{name}={ref}", ref)
    if kind_image is not None:
        reference("--kind-image", kind_image)
    if istio_hub is not None:
        reference("--istio-hub", istio_hub, f"{istio_hub}/proxyv2")
    if istio_tag is not None:
        reference("--istio-tag", istio_tag, f"proxyv2:{istio_tag}")
    return Options(
        dataplane=dataplane,
        sidecars=sidecars.value if sidecars else None,
        kubeconfig=kubeconfig,
        context=context,
        kind_image=kind_image,
        istio_hub=istio_hub,
        istio_tag=istio_tag,
        istio_set=tuple(istio_set or ()),
        images=named,
        merbridge_manifest=merbridge_manifest,
        keep_cluster=keep_cluster,
    )
