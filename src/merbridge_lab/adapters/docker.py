"""Docker, through its command line: the daemon, its containers, images and networks, and commands in a container."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters import docker_messages
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.command import Result, run
from merbridge_lab.adapters.image_reference import registry
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: How long a daemon that is busy starting containers may take to answer, in seconds.
_ANSWER = 30.0
_PULL = 900.0

#: The message and exit status of docker exec if the container is stopped before or while the command runs.
_NOT_RUNNING = ("Error response from daemon: ", "No such container")
_STOPPED = (126, 137)
#: Its message for an object that does not exist, by release; any other failure is no answer.
_ABSENT = re.compile(r"(?i)\bno such (?:image|network|container|object)\b|\bnetwork \S+ not found")


@dataclass(frozen=True)
class Engine:
    """The daemon: what it runs on and what it has. `memory` is in bytes; `root` is where it stores images.

    `kernel` is the release it runs on, `host` its machine's name: empty if it does not report it.
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
    """A container: `mounts` are the paths in it where something is mounted, `networks` those that it is on."""

    name: str
    state: str
    image: str
    labels: dict[str, str]
    mounts: tuple[str, ...]
    networks: tuple[str, ...]

    @property
    def running(self) -> bool:
        """Report whether its processes run."""
        return self.state == "running"


def docker(*argv: str, timeout: float = _ANSWER, ok: Sequence[int] = (0,), stdin: str | None = None) -> Result:
    """Run docker. Raise LabError, with the next step if the daemon does not answer."""
    told = run(["docker", *argv], timeout=timeout, ok=range(256), stdin=stdin)
    # It ends with 1 both if an object does not exist and if the daemon is not reachable: its message tells which.
    if told.status in ok and not (told.status and docker_messages.is_silent(told.stderr)):
        return told
    what = f"docker {argv[0]} failed with exit status {told.status}"
    raise docker_messages.explained(
        LabError(what, hint="merlab doctor", command=told.command, stderr=told.stderr.strip(), id="tool.failed")
    )


def engine(*, timeout: float = _ANSWER) -> Engine:
    """Read the daemon's properties. Raise LabError if none answers, or not within `timeout` seconds."""
    told = docker("info", "--format", "{{json .}}", timeout=timeout)
    try:
        found = json.loads(told.stdout)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise docker_messages.explained(
            LabError(
                "the output of docker info cannot be parsed: is this docker Docker's?",
                hint="docker version",
                command=told.command,
                stderr=f"{told.stdout}{told.stderr}".strip(),
                id="docker.unsupported",
            )
        )
    return read_engine(found)


def read_engine(told: dict[str, Any]) -> Engine:
    """Parse the output of `docker info`. Raise LabError: it exits with 0 also if no daemon answers.

    Podman's command of that name reports other fields; so does its daemon, if Docker's command asks it.
    """
    if podman := docker_messages.podman_in(told):
        raise docker_messages.is_podman(podman)
    errors = told.get("ServerErrors") or []
    if errors or not told.get("ServerVersion"):
        said = "\n".join(errors) or docker_messages.NO_ANSWER
        raise docker_messages.explained(
            LabError("docker info failed", command="docker info", stderr=said, id="docker.unreachable")
        )
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
    # One may disappear between the two commands; inspect then reports the others, and fails.
    told = docker("inspect", "--type", "container", *ids, ok=(0, 1)).stdout
    return read_containers(json.loads(told or "[]"))


def read_containers(told: list[dict[str, Any]]) -> list[Container]:
    """Parse the output of `docker inspect`."""
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
    """Return the PID, on the daemon's machine, of a container's first process; 0 if it does not run."""
    return int(docker("inspect", "--type", "container", "--format", "{{.State.Pid}}", container).stdout)


@change("start a container")
def start(container: str) -> None:
    """Start a container that was stopped."""
    docker("start", container)


@change("remove containers")
def remove(containers_: Sequence[str]) -> None:
    """Stop and remove containers, with their volumes."""
    docker("rm", "--force", "--volumes", *containers_)


def exec_argv(container: str, argv: Sequence[str], *, stdin: bool = False, terminal: bool = False) -> list[str]:
    """Return the command that runs `argv` in a container."""
    options = [*(["-i"] if stdin or terminal else []), *(["-t"] if terminal else [])]
    return ["docker", "exec", *options, container, *argv]


@change("run in a container")
def execute(
    container: str, argv: Sequence[str], *, stdin: str | None = None, timeout: float = _ANSWER, ok: Sequence[int] = (0,)
) -> Result:
    """Run `argv` in a container. Raise LabError, also if the container was stopped meanwhile."""
    told = run(exec_argv(container, argv, stdin=stdin is not None), timeout=timeout, ok=range(256), stdin=stdin)
    said = told.stderr.strip()
    if told.status in _STOPPED or (told.status and any(words in said for words in _NOT_RUNNING)):
        raise LabError(
            f"the container {container} is not running, or was just restarted",
            hint="merlab up",
            command=told.command,
            stderr=said,
            id="node.stopped",
        )
    if told.status in ok and not (told.status and docker_messages.is_silent(said)):
        return told
    what = f"{argv[0]} failed with exit status {told.status} in the container {container}"
    raise docker_messages.explained(
        LabError(what, hint="merlab doctor", command=told.command, stderr=said, id="tool.failed")
    )


def has_image(ref: str) -> bool:
    """Report whether the daemon has an image of that name. Raise LabError if it does not answer."""
    return image_id(ref) is not None


def image_id(ref: str) -> str | None:
    """Return the digest of an image's configuration; None if the daemon does not have the image. Raises LabError."""
    told = _asked("image", "inspect", "--format", "{{.Id}}", ref)
    return None if told is None else told.strip()


def _asked(*argv: str) -> str | None:
    """Request an object; None if the daemon reports that it does not exist. Raise LabError for every other failure."""
    told = docker(*argv, ok=(0, 1))
    if told.status == 0:
        return told.stdout
    if _ABSENT.search(told.stderr):
        return None
    what = f"docker {argv[0]} {argv[1]} failed with exit status {told.status}"
    raise LabError(what, hint="merlab doctor", command=told.command, stderr=told.stderr.strip(), id="tool.failed")


@change("pull an image")
def pull(ref: str) -> None:
    """Pull an image. Raise LabError naming it, where it was searched for, and the alternative."""
    try:
        docker("pull", "--quiet", ref, timeout=_PULL)
    except LabError as error:
        raise LabError(
            f"the image {ref} is not on this machine and cannot be pulled from {registry(ref)}"
            f"{docker_messages.why_not_pulled(error.stderr or '')}",
            hint=f"docker load --input FILE  # saved by docker save --output FILE {ref} on a machine that has it",
            command=error.command,
            stderr=error.stderr,
            id="image.not_pulled",
        ) from error


def require_offered(ref: str, *, timeout: float) -> None:
    """Check that an image's registry has it, without pulling it. Raise LabError, after at most `timeout` seconds."""
    docker("manifest", "inspect", ref, timeout=timeout)


def network_labels(name: str) -> dict[str, str] | None:
    """Return the labels of a network, or None if there is none of that name."""
    told = _asked("network", "inspect", "--format", "{{json .Labels}}", name)
    return None if told is None else dict(json.loads(told) or {})


def network_argv(name: str, label: str) -> list[str]:
    """Return the command that creates a network like kind's."""
    masquerade = "com.docker.network.bridge.enable_ip_masquerade=true"
    return ["docker", "network", "create", "-d", "bridge", "-o", masquerade, "--label", label, name]


@change("make a network")
def create_network(name: str, label: str) -> None:
    """Create a network with a label."""
    docker(*network_argv(name, label)[1:])


@change("remove a network")
def remove_network(name: str) -> None:
    """Remove a network that no container is on."""
    docker("network", "rm", name)
