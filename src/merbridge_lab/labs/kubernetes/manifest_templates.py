"""merlab's own manifests, from its data: plain YAML, or a template of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab import templates
from merbridge_lab.labs.kubernetes.settings import DATA

if TYPE_CHECKING:
    from merbridge_lab.labs.kubernetes.settings import Settings


def rendered(name: str, settings: Settings) -> str:
    """Return the text of one of them, with the images of `settings`. Raise OSError for a name that does not exist."""
    folder = DATA / "manifests"
    plain = folder / f"{name}.yaml"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    template = (folder / f"{name}.yaml.j2").read_text(encoding="utf-8")
    return templates.render(template, images=settings.images, helper=settings.proxy_image)
