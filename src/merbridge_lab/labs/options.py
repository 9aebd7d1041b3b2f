"""What a command line may request of a lab on a cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SIDECARS = ("classic", "native")
#: The form of an image's name, [host[:port]/]path[:tag][@digest], as github.com/distribution/reference defines it.
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:]+\])"
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
IMAGE = re.compile(rf"(?:{_HOST}(?::[0-9]+)?/)?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?(?:@{_DIGEST})?", re.ASCII)


@dataclass(frozen=True)
class Options:
    """What was requested; None, or an empty tuple or mapping, if nothing was given."""

    dataplane: str | None = None
    sidecars: str | None = None
    kubeconfig: str | None = None
    context: str | None = None
    kind_image: str | None = None
    istio_hub: str | None = None
    istio_tag: str | None = None
    istio_set: tuple[str, ...] = ()
    images: Mapping[str, str] = field(default_factory=dict)
    merbridge_manifest: str | None = None
    keep_cluster: bool = False

    def said(self) -> list[str]:
        """Return the options that were given, as one types them."""
        typed = {"images": "image"}
        return [
            f"--{typed.get(one.name, one.name).replace('_', '-')}" for one in fields(self) if getattr(self, one.name)
        ]
