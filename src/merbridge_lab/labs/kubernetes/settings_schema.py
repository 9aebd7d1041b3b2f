"""The lab's settings as the cluster stores them, field by field: whoever may write a ConfigMap may write anything."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from merbridge_lab.labs.options import IMAGE, SIDECARS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

#: Characters that no value contains: control characters would reach a terminal, a command or a file.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MOST = 4096
#: Images that earlier merlabs did not know, and so did not store.
LATER = frozenset({"merlab"})
#: What merlabs before 0.2 also stored there, and nobody reads any more: a path of this machine.
_DROPPED = frozenset({"kubeconfig"})


def read(
    text: str, *, workloads: Collection[str], dataplanes: Collection[str], manifests: Collection[str]
) -> dict[str, Any]:
    """Parse the settings of a lab from their JSON. Raise ValueError naming the first invalid field.

    `workloads` are those that have an image, `manifests` the names of upstream's.
    """
    try:
        told = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(told, dict):
        raise ValueError(f"it is {_short(told)}, not an object")  # noqa: TRY004 - of what was read, not a mistake here
    fields = _fields(workloads, dataplanes, manifests)
    told = {name: value for name, value in told.items() if name not in _DROPPED}
    if unknown := sorted(set(told) - set(fields)):
        raise ValueError(f"{_short(unknown[0])} is not a field that this merlab knows")
    for name, (needed, fits) in fields.items():
        if name not in told:
            raise ValueError(f"it has no {name}")
        if not fits(told[name]):
            raise ValueError(f"{name} is {_short(told[name])}, not {needed}")
    for image in ("pilot", "proxyv2"):
        if not IMAGE.fullmatch(f"{told['istio_hub']}/{image}:{told['istio_tag']}"):
            raise ValueError(f"istio_hub and istio_tag make no name of an image: {_short(told['istio_hub'])}")
    return {**told, "istio_set": tuple(told["istio_set"])}


def _fields(
    workloads: Collection[str], dataplanes: Collection[str], manifests: Collection[str]
) -> Mapping[str, tuple[str, Callable[[object], bool]]]:
    def is_manifest(value: object) -> bool:
        return value == "" or (_is_text(value) and (value in manifests or str(value).startswith(_PLACES)))

    def are_images(value: object) -> bool:
        known = set(workloads)
        return isinstance(value, dict) and known - LATER <= set(value) <= known and all(map(_is_image, value.values()))

    return {
        "kind_image": ("the name of an image", _is_image),
        "istio_hub": ("text", _is_text),
        "istio_tag": ("text", _is_text),
        "istio_set": ("a list of KEY=VALUE", lambda value: isinstance(value, list) and all(map(_is_pair, value))),
        "sidecars": (f"one of {', '.join(SIDECARS)}", lambda value: _is_text(value) and value in SIDECARS),
        "images": (f"the images of {', '.join(workloads)}", are_images),
        "dataplane": (f"one of {', '.join(dataplanes)}", lambda value: _is_text(value) and value in dataplanes),
        "merbridge_manifest": (f"a URL, a whole path, or one of {', '.join(manifests)}", is_manifest),
    }


_PLACES = ("https://", "http://", "/")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MOST and not _CONTROL.search(value)


def _is_image(value: object) -> bool:
    return _is_text(value) and bool(IMAGE.fullmatch(str(value)))


def _is_pair(value: object) -> bool:
    return _is_text(value) and bool(re.match(r"[^=\s-][^=]*=", str(value)))


def _short(value: object) -> str:
    """Return a value as JSON, in ASCII and cut: it goes to a terminal."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"  # noqa: PLR2004 - a part of a line
