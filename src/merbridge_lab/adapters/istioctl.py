"""The command istioctl: installs and uninstalls Istio."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.command import run
from merbridge_lab.errors import LabError
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_INSTALL = 300.0
_CROSS = re.compile(r"^\s*[✘✗✖❌]\ufe0f?\s*")
_LAST = re.compile(r"^(?:Error|error)(?::\s*|\b)")


def version() -> str:
    """Return the version of istioctl itself."""
    told = run(["istioctl", "version", "--remote=false", "--output=json"]).stdout
    return str(json.loads(told)["clientVersion"]["version"])


def install_argv(settings: Sequence[str]) -> list[str]:
    """Return the command that installs Istio with the settings "key=value"."""
    return ["istioctl", "install", "-y", *(word for setting in settings for word in ("--set", setting))]


@change("install Istio")
def install(
    settings: Sequence[str],
    *,
    kubeconfig: str,
    look: Callable[[], LabError | None],
    fetch_command: Callable[[str], str] | None = None,
) -> None:
    """Install Istio, and wait until it is ready, unless `look` returns an error meanwhile. Raises LabError.

    `fetch_command` returns what a person types for an image that is not pulled.
    """
    try:
        run([*install_argv(settings), "--kubeconfig", kubeconfig], timeout=_INSTALL, look=look)
    except LabError as error:
        if error.command is None:  # what `look` returned
            raise
        said = complaint(error.stderr or "")
        raise LabError(
            f"istioctl could not install Istio: {cause(said) or error.what}",
            hint=_hint(said, fetch_command),
            command=error.command,
            stderr=said,
            id="istio.failed",
        ) from error


def complaint(said: str) -> str:
    """Return only istioctl's complaints: a ship and its progress come first.

    Newer releases print them in lines that begin with "Error". Older ones print the cause in lines that begin with a
    cross, and details indented below.
    """
    kept: list[str] = []
    bare, below, last = "", False, False
    for line in lines_of(said):
        last = last or bool(_LAST.match(line))
        if _CROSS.match(line):
            # A cross with nothing but a name is only meaningful with what is below it.
            below, bare = True, "" if ":" in line else line
        else:
            below = below and line.startswith((" ", "\t")) and bool(line.strip())
        if last or (below and not bare):
            kept.append(line)
        elif below and line != bare:
            kept += [bare, line]
            bare = ""
    return "\n".join(kept) if kept else said


def cause(said: str) -> str:
    """Return the first complaint, in a line without its mark; the last line if there is nothing else."""
    lines = [line.strip() for line in lines_of(said) if line.strip()]
    crossed = [_CROSS.sub("", line) for line in lines if _CROSS.match(line)]
    found = crossed or [_LAST.sub("", line) for line in lines if _LAST.match(line)]
    return found[0] if found else ""


def _hint(said: str, fetch_command: Callable[[str], str] | None) -> str:
    """Return the next command: for an image that is not pulled its own, else one that lists Istio's pods."""
    image = re.search(r'(?:image|Image) "([^"\s]+)"', said) if re.search(r"ImagePull|ErrImage|pull", said) else None
    return fetch_command(image[1]) if image and fetch_command else "merlab status"


@change("uninstall Istio")
def uninstall(*, kubeconfig: str) -> None:
    """Uninstall everything that Istio has in the cluster, except for its namespace."""
    run(["istioctl", "uninstall", "-y", "--purge", "--kubeconfig", kubeconfig], timeout=_INSTALL)
