"""The command istioctl: installs Istio, and takes it away."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.proc import run
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_INSTALL = 300.0


def version() -> str:
    """Give the version of istioctl itself."""
    told = run(["istioctl", "version", "--remote=false", "--output=json"]).stdout
    return str(json.loads(told)["clientVersion"]["version"])


def install_argv(settings: Sequence[str]) -> list[str]:
    """Give the command that installs Istio with the settings "key=value"."""
    return ["istioctl", "install", "-y", *(word for setting in settings for word in ("--set", setting))]


@change("install Istio")
def install(settings: Sequence[str], *, kubeconfig: str, look: Callable[[], LabError | None]) -> None:
    """Install Istio, and wait until it is there, unless `look` gives an error meanwhile. Raises LabError."""
    try:
        run([*install_argv(settings), "--kubeconfig", kubeconfig], timeout=_INSTALL, look=look)
    except LabError as error:
        if error.command is None:  # what `look` saw
            raise
        raise LabError(
            f"istioctl could not install Istio: {error.what}",
            hint="merlab doctor --lab kind",
            command=error.command,
            stderr=complaint(error.stderr or ""),
        ) from error


def complaint(said: str) -> str:
    """Leave what istioctl complains of: a ship and its progress come before."""
    lines = said.splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith("Error")), 0)
    return "\n".join(lines[first:])


@change("uninstall Istio")
def uninstall(*, kubeconfig: str) -> None:
    """Take away all that Istio has in the cluster, but its namespace."""
    run(["istioctl", "uninstall", "-y", "--purge", "--kubeconfig", kubeconfig], timeout=_INSTALL)
