"""Download a file from the web, and refuse it if it is incomplete or has changed.

It uses the distribution's curl: curl knows TLS, redirects and proxies, detects an incomplete answer, applies one
deadline to everything, and can be ended at any moment.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from merbridge_lab.adapters.command import run
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable

#: How long a download may take from the first lookup of the name to the last byte, in seconds.
_DEADLINE = 60.0
#: Maximum size, in bytes. A manifest has some kilobytes.
_MOST = 1 << 20
_HINT = "download it elsewhere and name the file; without --merbridge-manifest merlab uses its own"
#: curl's exit status for "larger than --max-filesize".
_TOO_LARGE = 63


def text(url: str, *, sha256: str | None = None, deadline: float = _DEADLINE) -> str:
    """Return the complete content of a URL.

    Raise LabError if no download by https succeeds within `deadline` seconds, the content is larger than 1 MiB, or it
    has another digest than `sha256`.
    """
    if urlsplit(url).scheme != "https":
        raise LabError(
            f"{url} is neither a file nor an https URL",
            hint="--merbridge-manifest takes an https URL or a file",
            id="manifest.unusable",
        )
    with tempfile.TemporaryDirectory(prefix="merlab-download-") as folder:
        content = _content(url, Path(folder) / "answer", deadline)
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise LabError(
            f"{url} failed its checksum: SHA-256 is {found}, not {sha256}",
            hint="without --merbridge-manifest merlab uses its own",
            id="manifest.unusable",
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise LabError(f"{url} is not text", hint=_HINT, id="manifest.unusable") from error


def _content(url: str, answer: Path, deadline: float) -> bytes:
    # "-q": no file of the user's adds an option. The size is also checked here: up to 8.3, curl itself checks it only
    # if the server announces it.
    argv = ["curl", "-q", "--silent", "--show-error", "--fail", "--globoff", "--location", "--max-redirs", "5"]
    argv += ["--proto", "=https", "--proto-redir", "=https", "--max-time", f"{deadline:g}"]
    argv += ["--max-filesize", str(_MOST), "--output", str(answer), "--url", url]
    try:
        done = run(argv, timeout=deadline + 5, ok=(0, _TOO_LARGE), look=_grown(url, answer))
    except LabError as error:
        if error.what.startswith(url) or "curl is not" in error.what:
            raise
        if (large := _grown(url, answer)()) is not None:
            raise large from error
        why = (error.stderr or error.what).strip()
        raise LabError(
            f"{url} cannot be downloaded", hint=_HINT, command=error.command, stderr=why, id="manifest.unusable"
        ) from error
    content = answer.read_bytes() if answer.exists() else b""  # curl creates no file for an empty answer
    if done.status == _TOO_LARGE or len(content) > _MOST:
        raise _too_large(url)
    return content


def _grown(url: str, answer: Path) -> Callable[[], LabError | None]:
    def look() -> LabError | None:
        return _too_large(url) if answer.exists() and answer.stat().st_size > _MOST else None

    return look


def _too_large(url: str) -> LabError:
    return LabError(f"{url} is larger than {_MOST >> 20} MiB: it is not a manifest", hint=_HINT, id="manifest.unusable")
