"""Docker, by its command line: is it there, what containers, images and networks it has, commands in a container."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters import docker_messages
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.command import Result, run
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A daemon that is busy starting containers may take this long to answer, in seconds.
_ANSWER = 30.0
_PULL = 900.0

#: What docker exec says, and how it ends, where the container is stopped before or while the command runs.
_NOT_RUNNING = ("Error response from daemon: ", "No such container")
_STOPPED = (126, 137)
#: What it says of a thing that is not there, by release; all else that fails is no answer.
_ABSENT = re.compile(r"(?i)\bno such (?:image|network|container|object)\b|\bnetwork \S+ not found")


@dataclass(frozen=True)
class Engine:
    """The daemon: what it runs on and what it has. `memory` in bytes; `root` is where it keeps images.

    `kernel` is the release it runs on, `host` its machine's name: empty where it does not tell.
    """

    version: str
    system: str
    cgroup_version: str
    rootless: bool
    cpus: int
    memory: int
    root: str
    kernel: str = ""
    host: str = ""


@dataclass(frozen=True)
class Container:
    """A container: `mounts` are the paths in it where something is mounted, `networks` those it is on."""

    name: str
    state: str
    image: str
    labels: dict[str, str]
    mounts: tuple[str, ...]
    networks: tuple[str, ...]

    @property
    def running(self) -> bool:
        """Whether its processes run."""
        return self.state == "running"


def docker(*argv: str, timeout: float = _ANSWER, ok: Sequence[int] = (0,), stdin: str | None = None) -> Result:
    """Run docker. Raises LabError, with what to do where the daemon does not answer."""
    told = run(["docker", *argv], timeout=timeout, ok=range(256), stdin=stdin)
    # It ends with 1 both where something is not there and where the daemon is not: its words tell.
    if told.status in ok and not (told.status and docker_messages.is_silent(told.stderr)):
        return told
    what = f"docker {argv[0]} failed with exit status {told.status}"
    raise docker_messages.explained(
        LabError(what, hint="merlab doctor --lab kind", command=told.command, stderr=told.stderr.strip())
    )


def engine(*, timeout: float = _ANSWER) -> Engine:
    """Ask the daemon what it is. Raises LabError when none answers, or not within `timeout` seconds."""
    told = docker("info", "--format", "{{json .}}", timeout=timeout)
    try:
        found = json.loads(told.stdout)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise docker_messages.explained(
            LabError(
                "docker info tells nothing that can be read: is this docker Docker's?",
                hint="docker version",
                command=told.command,
                stderr=f"{told.stdout}{told.stderr}".strip(),
            )
        )
    return read_engine(found)


def read_engine(told: dict[str, Any]) -> Engine:
    """Read what `docker info` tells. Raises LabError: it exits with 0 also when no daemon answers.

    Podman's command of that name tells other things; so does its daemon, where Docker's command asks it.
    """
    if podman := docker_messages.podman_in(told):
        raise docker_messages.is_podman(podman)
    errors = told.get("ServerErrors") or []
    if errors or not told.get("ServerVersion"):
        said = "\n".join(errors) or docker_messages.NO_ANSWER
        raise docker_messages.explained(LabError("docker info failed", command="docker info", stderr=said))
    return Engine(
        version=told["ServerVersion"],
        system=told.get("OperatingSystem", ""),
        cgroup_version=str(told.get("CgroupVersion", "")),
        rootless=any("rootless" in option for option in told.get("SecurityOptions") or []),
        cpus=int(told.get("NCPU", 0)),
        memory=int(told.get("MemTotal", 0)),
        root=told.get("DockerRootDir", ""),
        kernel=told.get("KernelVersion") or "",
        host=told.get("Name") or "",
    )


def containers(label: str) -> list[Container]:
    """List the containers with `label`, running or not, by name."""
    ids = docker("ps", "--all", "--quiet", "--filter", f"label={label}").stdout.split()
    if not ids:
        return []
    # One may go between the two commands; inspect then tells of the others, and fails.
    told = docker("inspect", "--type", "container", *ids, ok=(0, 1)).stdout
    return read_containers(json.loads(told or "[]"))


def read_containers(told: list[dict[str, Any]]) -> list[Container]:
    """Read what `docker inspect` tells."""
    found = [
        Container(
            name=one["Name"].lstrip("/"),
            state=one["State"]["Status"],
            image=one["Config"]["Image"],
            labels=one["Config"].get("Labels") or {},
            mounts=tuple(mount["Destination"] for mount in one.get("Mounts") or []),
            networks=tuple((one.get("NetworkSettings") or {}).get("Networks") or {}),
        )
        for one in told
    ]
    return sorted(found, key=lambda container: container.name)


def pid(container: str) -> int:
    """Return the PID, on the daemon's machine, of a container's first process; 0 where it does not run."""
    return int(docker("inspect", "--type", "container", "--format", "{{.State.Pid}}", container).stdout)


@change("start a container")
def start(container: str) -> None:
    """Start a container that was stopped."""
    docker("start", container)


@change("remove containers")
def remove(containers_: Sequence[str]) -> None:
    """End and remove containers, with their volumes."""
    docker("rm", "--force", "--volumes", *containers_)


def exec_argv(container: str, argv: Sequence[str], *, stdin: bool = False, terminal: bool = False) -> list[str]:
    """Return the command that runs `argv` in a container."""
    options = [*(["-i"] if stdin or terminal else []), *(["-t"] if terminal else [])]
    return ["docker", "exec", *options, container, *argv]


@change("run in a container")
def execute(
    container: str, argv: Sequence[str], *, stdin: str | None = None, timeout: float = _ANSWER, ok: Sequence[int] = (0,)
) -> Result:
    """Run `argv` in a container. Raises LabError, also where the container was stopped meanwhile."""
    told = run(exec_argv(container, argv, stdin=stdin is not None), timeout=timeout, ok=range(256), stdin=stdin)
    said = told.stderr.strip()
    if told.status in _STOPPED or (told.status and any(words in said for words in _NOT_RUNNING)):
        raise LabError(
            f"the container {container} does not run, or was restarted just now",
            hint="merlab up --lab kind",
            command=told.command,
            stderr=said,
        )
    if told.status in ok and not (told.status and docker_messages.is_silent(said)):
        return told
    what = f"{argv[0]} failed with exit status {told.status} in the container {container}"
    raise docker_messages.explained(LabError(what, hint="merlab doctor --lab kind", command=told.command, stderr=said))


def has_image(ref: str) -> bool:
    """Whether the daemon has an image of that name. Raises LabError where it does not say so."""
    return _asked("image", "inspect", "--format", "{{.Id}}", ref) is not None


def _asked(*argv: str) -> str | None:
    """Ask for a thing; None where the daemon says that it is not there. Raises LabError for every other failure."""
    told = docker(*argv, ok=(0, 1))
    if told.status == 0:
        return told.stdout
    if _ABSENT.search(told.stderr):
        return None
    what = f"docker {argv[0]} {argv[1]} failed with exit status {told.status}"
    raise LabError(what, hint="merlab doctor --lab kind", command=told.command, stderr=told.stderr.strip())


@change("pull an image")
def pull(ref: str) -> None:
    """Pull an image. Raises LabError naming it, where it was looked for, and how to do without."""
    try:
        docker("pull", "--quiet", ref, timeout=_PULL)
    except LabError as error:
        raise LabError(
            f"the image {ref} is not on this machine and cannot be pulled from {registry(ref)}"
            f"{docker_messages.why_not_pulled(error.stderr or '')}",
            hint=f"docker load --input FILE  # of docker save --output FILE {ref}, on a machine that has it",
            command=error.command,
            stderr=error.stderr,
        ) from error


def require_offered(ref: str, *, timeout: float) -> None:
    """Ask an image's registry whether it has it, without pulling it. Raises LabError, in `timeout` seconds at most."""
    docker("manifest", "inspect", ref, timeout=timeout)


def registry(ref: str) -> str:
    """Say which registry serves an image: the first part of its name if that looks like a host, else Docker Hub."""
    first, slash, _ = ref.partition("/")
    is_host = slash and ("." in first or ":" in first or first == "localhost")
    return first if is_host else "docker.io"


def network_labels(name: str) -> dict[str, str] | None:
    """Return the labels of a network, or None where there is none of that name."""
    told = _asked("network", "inspect", "--format", "{{json .Labels}}", name)
    return None if told is None else dict(json.loads(told) or {})


def network_argv(name: str, label: str) -> list[str]:
    """Return the command that makes a network such as kind makes."""
    masquerade = "com.docker.network.bridge.enable_ip_masquerade=true"
    return ["docker", "network", "create", "-d", "bridge", "-o", masquerade, "--label", label, name]


@change("make a network")
def create_network(name: str, label: str) -> None:
    """Make a network with a label."""
    docker(*network_argv(name, label)[1:])


@change("remove a network")
def remove_network(name: str) -> None:
    """Remove a network that no container is on."""
    docker("network", "rm", name)
