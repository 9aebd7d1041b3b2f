"""What is applied to the cluster, as text for people and as objects for the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, StrictUndefined

from merbridge_lab.drivers.kind.settings import DATA, MERBRIDGE
from merbridge_lab.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.drivers.kind.settings import Settings

#: In the order in which they are applied: a pod gets its sidecar when it is made.
APPLIED = ("namespace", "strict", "sleep", "helloworld")
NAMES = ("kind", *APPLIED, "helper", "merbridge", "twin")


def text(name: str, settings: Settings) -> str:
    """Give a manifest by name. Raises LabError for one that does not exist."""
    if name not in NAMES:
        raise UsageError(f"there is no manifest called {name!r}; there are {', '.join(NAMES)}")
    if name == MERBRIDGE and settings.merbridge_manifest:
        from merbridge_lab.drivers.kind.merbridge import manifest

        return yaml.safe_dump_all(manifest.objects(settings), sort_keys=False)
    folder = DATA / "manifests"
    plain = folder / f"{name}.yaml"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    template = (folder / f"{name}.yaml.j2").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - YAML, no HTML
    return environment.from_string(template).render(images=settings.images, helper=settings.proxy_image)


def texts(names: Sequence[str], settings: Settings) -> str:
    """Give several, as one stream of documents."""
    return "---\n".join(text(name, settings) for name in names)


def objects(name: str, settings: Settings) -> list[dict[str, Any]]:
    """Give the objects of a manifest."""
    return [one for one in yaml.safe_load_all(text(name, settings)) if one]


def configuration(settings: Settings, *, finished: bool) -> dict[str, Any]:
    """Give the object that keeps, in the cluster, what the lab was made with, and whether that came to its end."""
    from merbridge_lab.drivers.kind import layout

    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": layout.SETTINGS,
            "namespace": layout.NAMESPACE,
            "labels": {"app.kubernetes.io/managed-by": "merlab"},
        },
        "data": {"settings.json": settings.to_json(), "finished": str(finished).lower()},
    }
