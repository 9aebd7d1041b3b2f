"""Get a file from the web, and refuse it where it is not what it was."""

from __future__ import annotations

import hashlib
import urllib.request
from urllib.parse import urlsplit

from merbridge_lab.errors import LabError

_TIMEOUT = 20.0
_MOST = 1 << 20


def text(url: str, *, sha256: str | None = None) -> str:
    """Give what is at a URL, at most 1 MB. Raises LabError where it cannot be had, or has another digest."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise LabError(f"{url} is neither a file nor a URL", hint="--merbridge-manifest takes https://…, or a file")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:  # noqa: S310 - http or https, see above
            content = bytes(answer.read(_MOST))
    except (OSError, ValueError) as error:
        raise LabError(
            f"{url} cannot be downloaded",
            hint="download it elsewhere and name the file; without --merbridge-manifest, one of merlab's own is taken",
            stderr=str(getattr(error, "reason", error)),
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise LabError(
            f"{url} is not what it was: its SHA-256 is {found}, not {sha256}",
            hint="without --merbridge-manifest, merlab's own is taken",
        )
    return content.decode(errors="replace")
