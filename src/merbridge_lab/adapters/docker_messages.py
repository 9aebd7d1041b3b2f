"""Messages of the command docker for failures, by release and by program, and what to do about them."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from merbridge_lab import hints
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from merbridge_lab.error_ids import ErrorId

#: The text used if docker prints nothing at all.
NO_ANSWER = "Cannot connect to the Docker daemon"
#: The messages of the command if it did not reach a daemon. A daemon's own errors, and those of a command in a
#: container, may also mention connections: so only complete phrases of the command are matched.
_SILENT = re.compile(
    r"cannot connect to the docker daemon|error during connect|is the docker daemon running"
    r"|failed to connect to the docker api|check if (?:the )?(?:docker )?daemon is running"
    r"|unable to resolve docker endpoint|unable to parse docker host|docker daemon is not running"
    r"|could not be found in this wsl 2 distro|cannot connect to podman",
    re.IGNORECASE,
)
_FORBIDDEN = re.compile(
    r"permission denied while trying to connect|dial unix \S+: connect: permission denied", re.IGNORECASE
)
_PODMAN = re.compile(
    r"cannot connect to podman|emulate docker cli using podman|podman system connection", re.IGNORECASE
)
_VERSION = re.compile(r"client version \S+ is too (?:new|old)[^\n]*", re.IGNORECASE)
_TLS = re.compile(r"http request to an https server|does not look like a tls handshake", re.IGNORECASE)
_CONTEXT = re.compile(
    r'context "?([^\s":]+)"?: context not found|context "([^"]+)" (?:not found|does not exist)', re.IGNORECASE
)
_ADDRESS = re.compile(r"\b(?:unix|tcp|ssh|npipe|https?|fd)://[^\s\"']+?(?=[.,;:]?(?:[\s\"']|$))")
_DEFAULT = "unix:///var/run/docker.sock"
#: The two paths of the system's daemon: /var/run leads to /run.
_SYSTEMS = (_DEFAULT, "unix:///run/docker.sock")
#: The lab that does not need Docker, and what the other one needs.
_WITHOUT = f"{hints.WITHOUT_CLUSTER}  # or install Docker Engine: https://docs.docker.com/engine/install"


def is_silent(said: str) -> bool:
    """Report whether docker's message means that it could not reach a daemon."""
    return any(words.search(said) for words in (_SILENT, _FORBIDDEN, _VERSION, _TLS))


def explained(error: LabError) -> LabError:
    """Return an error of docker's with the cause and what to type next, if its message is known."""
    said = error.stderr or ""
    what, hint = _told(said)
    if not what:
        return error
    section: ErrorId = "docker.unsupported" if _PODMAN.search(said) else "docker.unreachable"
    return LabError(what, hint=hint, command=error.command, stderr=error.stderr, id=section)


def _told(said: str) -> tuple[str, str]:
    """Return what is wrong and what to type; two empty strings if the message is not about reaching a daemon."""
    where = address(said)
    what, hint = "", ""
    if _PODMAN.search(said):
        podman = is_podman("")
        what, hint = podman.what, podman.hint or ""
    elif _FORBIDDEN.search(said):
        what, hint = (
            f"this user may not use the Docker daemon at {where}",
            "become a member of the group docker, or root",
        )
    elif apart := _VERSION.search(said):
        what = f"the versions of docker and of the daemon at {where} do not fit: {apart[0].strip()}"
        hint = "docker version  # then upgrade the older one"
    elif _TLS.search(said):
        what, hint = f"docker and the daemon at {where} do not agree on TLS: only one side uses it", "docker context ls"
    elif missing := _CONTEXT.search(said):
        what = f"docker has no context {missing[1] or missing[2]}"
        hint = "docker context use default; unset DOCKER_CONTEXT"
    elif _SILENT.search(said):
        what, hint = f"no Docker daemon answers at {where}", _start(where)
    return what, hint


def address(said: str) -> str:
    """Return the address where docker looked for a daemon: from its message, else from its configuration."""
    found = _ADDRESS.search(said)
    return found[0] if found else os.environ.get("DOCKER_HOST") or _DEFAULT


def other_daemon() -> str:
    """Return the DOCKER_HOST of this process; "" if it is unset, or names the system's daemon, which is the default."""
    where = os.environ.get("DOCKER_HOST", "")
    return "" if where in _SYSTEMS else where


def _start(where: str) -> str:
    if os.environ.get("DOCKER_HOST"):
        return "unset DOCKER_HOST; systemctl start docker"
    if where not in _SYSTEMS and where.startswith(("unix://", "tcp://", "ssh://")):
        return "docker context use default; systemctl start docker"
    return "systemctl start docker"


# -- Podman ----------------------------------------------------------------------------------------------------------


def podman_in(told: Mapping[str, Any]) -> str:
    """Return Podman's version if Podman answered `docker info`; "" if it did not."""
    own = told.get("version")
    if isinstance(told.get("host"), dict) and isinstance(own, dict):  # the command docker is Podman's
        return str(own.get("Version") or "of unknown version")
    if "BuildahVersion" in told:  # its daemon, contacted by Docker's command
        return str(told.get("ServerVersion") or "of unknown version")
    return ""


def is_podman(version: str) -> LabError:
    """Return the error for a docker that is Podman."""
    named = f" {version}" if version else ""
    return LabError(
        f"docker is Podman{named} here, which merlab does not support: it needs Docker Engine",
        hint=_WITHOUT,
        id="docker.unsupported",
    )


# -- images ----------------------------------------------------------------------------------------------------------

_NOT_PULLED = (
    (r"manifest unknown|manifest for \S+ not found|: not found\b", "it has no such image or tag"),
    (r"pull access denied|unauthorized|denied:|authentication required", "it requires a login"),
    (r"toomanyrequests|rate limit", "this address has reached its rate limit"),
    (r"no such host|server misbehaving|name resolution", "its name cannot be resolved here"),
    (r"i/o timeout|deadline exceeded|timed out|connection refused|unreachable", "it cannot be reached from here"),
    (r"x509|certificate", "its certificate is not trusted here"),
    (r"no matching manifest", "it has none for this architecture"),
    (r"no space left on device", "the disk of Docker is full"),
)


def why_not_pulled(said: str) -> str:
    """Return ": " and the reason why an image is not pulled, as far as docker's message shows it; else ""."""
    return next((f": {why}" for words, why in _NOT_PULLED if re.search(words, said, re.IGNORECASE)), "")
