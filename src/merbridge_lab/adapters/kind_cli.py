"""The command kind: a cluster whose nodes are containers."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.command import Result, run
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The label of kind's containers; its value is the cluster's name.
LABEL = "io.x-k8s.kind.cluster"
#: Which Docker network kind puts its nodes on. An experiment of kind's, documented in its release notes.
NETWORK = "KIND_EXPERIMENTAL_DOCKER_NETWORK"

#: What kind runs nodes in; another one than Docker is no experiment of merlab's.
PROVIDER, DOCKER = "KIND_EXPERIMENTAL_PROVIDER", "docker"

_CREATE = 400.0
_LOAD = 900.0
_ANSWER = 60.0
_TEMPORARY = "merlab-kind-"
#: In the environment of a kind that merlab started: merlab's PID, and when that began.
_STARTED_BY = "MERLAB_STARTED_BY"
_COMMAND = "kind"


class IncompleteClusterError(LabError):
    """There is a node, and Kubernetes was not made on it, or not yet."""


def _run(argv: Sequence[str], *, timeout: float, ok: Sequence[int] = (0,), **changes: str) -> Result:
    """Run kind on Docker, whatever provider the environment names, with `changes` of the environment."""
    return run(argv, timeout=timeout, ok=ok, env={**os.environ, PROVIDER: DOCKER, **changes})


def version() -> str:
    """Return its version, such as "v0.33.0"."""
    return _run(["kind", "version"], timeout=_ANSWER).stdout.split()[1]


def create_argv(name: str, image: str, kubeconfig: str | None = None) -> list[str]:
    """Return the command that makes a cluster; it reads the configuration from its standard input."""
    where = ["--kubeconfig", kubeconfig] if kubeconfig else []
    return ["kind", "create", "cluster", "--name", name, "--image", image, "--config", "-", *where]


def _folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder for the length of a block; what a merlab that is killed leaves of it, `sweep` finds by its name."""
    return tempfile.TemporaryDirectory(prefix=f"{_TEMPORARY}{os.getpid()}-", ignore_cleanup_errors=True)


@change("make a cluster")
def create(name: str, image: str, config: str, *, network: str) -> None:
    """Make a cluster, whose context goes into no kubeconfig. Raises LabError with all that kind said.

    Of one that fails, the node stays: in it is what its kubelet said. The caller deletes it.
    """
    # kind does not do without a file to write to.
    with _folder() as folder:
        argv = [*create_argv(name, image, str(Path(folder, "kubeconfig"))), "--retain"]
        # Whose kind this is, at_work finds out by the last one.
        mine = {PROVIDER: DOCKER, NETWORK: network, _STARTED_BY: f"{os.getpid()}:{_began(os.getpid())}"}
        run(argv, timeout=_CREATE, stdin=config, env={**os.environ, **mine})


def export_argv(name: str, kubeconfig: str | None = None) -> list[str]:
    """Return the command that puts a cluster's context into a kubeconfig."""
    return ["kind", "export", "kubeconfig", "--name", name, *(["--kubeconfig", kubeconfig] if kubeconfig else [])]


@change("write a kubeconfig")
def export(name: str, kubeconfig: str) -> None:
    """Put a cluster's context into a kubeconfig. Raises LabError."""
    try:
        _run(export_argv(name, kubeconfig), timeout=_ANSWER)
    except LabError as error:
        raise LabError(
            f"the context of {name} cannot be put into {kubeconfig}",
            hint="name another file by --kubeconfig",
            command=error.command,
            stderr=error.stderr,
        ) from error


def context_in(kubeconfig: str, name: str) -> dict[str, Any] | None:
    """Return what a kubeconfig says of a cluster; None where it is not in there. Raises LabError for what is none."""
    try:
        told = yaml.safe_load(Path(kubeconfig).read_text(encoding="utf-8")) or {}
        clusters = {one["name"]: dict(one["cluster"]) for one in told.get("clusters") or []}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise LabError(
            f"{kubeconfig} is no kubeconfig that can be read",
            hint="name another file by --kubeconfig, or remove this one",
            stderr=str(error),
        ) from error
    return clusters.get(f"kind-{name}")


def delete_argv(name: str, kubeconfig: str | None = None) -> list[str]:
    """Return the command that deletes a cluster, and its context from the kubeconfig."""
    return ["kind", "delete", "cluster", "--name", name, *(["--kubeconfig", kubeconfig] if kubeconfig else [])]


@change("delete a cluster")
def delete(name: str, kubeconfig: str | None) -> Result:
    """Delete a cluster; whether it is gone, one looks up."""
    return _run(delete_argv(name, kubeconfig), timeout=_ANSWER, ok=range(256))


def kubeconfig_of(name: str) -> dict[str, Any]:
    """Return the administrator's configuration for a cluster. Raises IncompleteClusterError where it was never made."""
    try:
        told = _run(["kind", "get", "kubeconfig", "--name", name], timeout=_ANSWER).stdout
    except LabError as error:
        if "admin.conf: No such file" not in (error.stderr or ""):
            raise
        raise IncompleteClusterError(
            f"the cluster {name} has no Kubernetes: its set-up did not finish", hint="merlab up --lab kind"
        ) from error
    return dict(yaml.safe_load(told))


def known(name: str) -> dict[str, Any] | None:
    """Return what the kubeconfig that kubectl would read says of a cluster; None where it is not in there."""
    told = os.environ.get("KUBECONFIG", "")
    for file in filter(None, told.split(os.pathsep)) if told else [str(Path.home() / ".kube" / "config")]:
        with contextlib.suppress(LabError):
            if (found := context_in(file, name)) is not None:
                return found
    return None


def load_argv(name: str, refs: Sequence[str]) -> list[str]:
    """Return the command that copies images from Docker to the nodes."""
    return ["kind", "load", "docker-image", "--name", name, *refs]


@change("load images")
def load(name: str, refs: Sequence[str]) -> None:
    """Copy images from Docker to the nodes. Raises LabError; where a disk is full it says which."""
    try:
        # kind saves them, gigabytes perhaps, in a folder that stays there when it is ended half-way.
        with _folder() as folder:
            _run(load_argv(name, refs), timeout=_LOAD, TMPDIR=folder)
    except LabError as error:
        raise not_loaded(error, refs) from error


def not_loaded(error: LabError, refs: Sequence[str]) -> LabError:
    """Say why images do not get into a node: kind has Docker save them to a file here, which ctr imports there."""
    said = error.stderr or ""
    what, hint = f"kind could not load {', '.join(refs)} into the node", "merlab doctor --lab kind"
    if "no space left on device" in said:
        node = re.search(r'"docker exec [^"]*?(\S+) ctr ', said)
        if node:
            what = f"there is no room on the disk of the node {node[1]} for {', '.join(refs)}"
            hint = f"docker exec {node[1]} df -h /var"
        else:
            what = f"there is no room on the disk with {tempfile.gettempdir()} to save {', '.join(refs)}"
            hint = f"df -h {tempfile.gettempdir()}"
    return LabError(what, hint=hint, command=error.command, stderr=error.stderr)


# -- what a merlab that was killed may have left


def at_work(name: str) -> list[int]:
    """Return the PIDs of processes that create the cluster `name` on behalf of a merlab of this user's that is gone.

    A merlab that is killed cannot end them. Anybody can give a process such arguments: it must be this user's, run the
    program kind, and have the mark of a merlab that lives no more in its environment.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if is_orphan(process, name):
                found.append(int(process.name))
    return found


def is_orphan(process: Path, name: str) -> bool:
    """Whether `process`, a folder of /proc, is such a one. Raises OSError for one that is gone or out of sight."""
    argv = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    if [Path(argv[0]).name, *argv[1:5]] != [_COMMAND, "create", "cluster", "--name", name]:
        return False
    # The owner of the folder is no proof: root's, for a process that may not be dumped.
    status = (process / "status").read_text(encoding="utf-8", errors="replace")
    uids = re.search(r"^Uid:((?:\s+\d+){4})$", status, re.MULTILINE)
    if uids is None or {int(uid) for uid in uids[1].split()} != {os.geteuid()}:
        return False
    program = os.readlink(process / "exe").removesuffix(" (deleted)")  # noqa: PTH115 - it may be of a file that is gone
    # What is on PATH under this name may be a link to kind-linux-amd64.
    if Path(program).name not in (_COMMAND, Path(shutil.which(_COMMAND) or _COMMAND).resolve().name):
        return False
    return _is_abandoned((process / "environ").read_bytes().split(b"\0"))


def _is_abandoned(environment: Sequence[bytes]) -> bool:
    """Whether an environment has the mark of a merlab that lives no more."""
    prefix = f"{_STARTED_BY}=".encode()
    marks = [one.removeprefix(prefix).decode(errors="replace") for one in environment if one.startswith(prefix)]
    if len(marks) != 1 or not re.fullmatch(r"\d+:\d+", marks[0]):
        return False
    owner, _, began = marks[0].partition(":")
    try:
        return _began(int(owner)) != int(began)
    except (FileNotFoundError, ProcessLookupError):
        return True


def _began(pid: int) -> int:
    """Return when a process began, in clock ticks after boot: with its PID that names it. Raises OSError."""
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19])


def _owner(path: str) -> str | None:
    parts = [part for part in Path(path).parts if part.startswith(_TEMPORARY)]
    return parts[0].removeprefix(_TEMPORARY).partition("-")[0] if parts else None


@change("end a process")
def end(pid: int, name: str) -> None:
    """End such a process; one that is gone already, or whose PID is another's by now, is left alone."""
    try:
        held = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # What is held cannot change any more: only now it is worth looking.
        with contextlib.suppress(OSError):
            if is_orphan(Path("/proc", str(pid)), name):
                signal.pidfd_send_signal(held, signal.SIGTERM)
    finally:
        os.close(held)


@change("delete temporary folders")
def sweep() -> None:
    """Remove the folders that such a merlab left, with keys or images in them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        owner = _owner(str(folder))
        with contextlib.suppress(OSError):
            if owner and not Path("/proc", owner).exists() and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder)
