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
from merbridge_lab.adapters.procfs import started
from merbridge_lab.errors import LabError
from merbridge_lab.text import read_text

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The label of kind's containers; its value is the cluster's name.
LABEL = "io.x-k8s.kind.cluster"
#: Selects the Docker network of kind's nodes. An experimental setting of kind's, documented in its release notes.
NETWORK = "KIND_EXPERIMENTAL_DOCKER_NETWORK"

#: What kind runs nodes in; merlab does not support another one than Docker.
PROVIDER, DOCKER = "KIND_EXPERIMENTAL_PROVIDER", "docker"

_CREATE = 400.0
_LOAD = 900.0
_ANSWER = 60.0
_TEMPORARY = "merlab-kind-"
#: In the environment of a kind that merlab started: merlab's PID, and its start time.
_STARTED_BY = "MERLAB_STARTED_BY"
_COMMAND = "kind"


class IncompleteClusterError(LabError):
    """There is a node without Kubernetes on it: it was not created, or not yet."""

    default_id = "cluster.incomplete"


def _run(argv: Sequence[str], *, timeout: float, ok: Sequence[int] = (0,), **changes: str) -> Result:
    """Run kind on Docker, whatever provider the environment names, with `changes` of the environment."""
    return run(argv, timeout=timeout, ok=ok, env={**os.environ, PROVIDER: DOCKER, **changes})


def version() -> str:
    """Return its version, such as "v0.33.0"."""
    return _run(["kind", "version"], timeout=_ANSWER).stdout.split()[1]


def create_argv(name: str, image: str, kubeconfig: str | None = None) -> list[str]:
    """Return the command that creates a cluster; it reads the configuration from its standard input."""
    where = ["--kubeconfig", kubeconfig] if kubeconfig else []
    return ["kind", "create", "cluster", "--name", name, "--image", image, "--config", "-", *where]


def _folder() -> tempfile.TemporaryDirectory[str]:
    """Create a folder for the duration of a block; if merlab is killed, `sweep` finds its remains by name."""
    return tempfile.TemporaryDirectory(prefix=f"{_TEMPORARY}{os.getpid()}-", ignore_cleanup_errors=True)


@change("make a cluster")
def create(name: str, image: str, config: str, *, network: str) -> None:
    """Create a cluster without adding its context to a kubeconfig. Raise LabError with kind's complete output.

    If it fails, the node stays: it contains the kubelet's log. The caller deletes it.
    """
    # kind requires a file to write to
    with _folder() as folder:
        argv = [*create_argv(name, image, str(Path(folder, "kubeconfig"))), "--retain"]
        # the last one tells at_work which merlab this kind belongs to
        mine = {PROVIDER: DOCKER, NETWORK: network, _STARTED_BY: f"{os.getpid()}:{_began(os.getpid())}"}
        run(argv, timeout=_CREATE, stdin=config, env={**os.environ, **mine})


def export_argv(name: str, kubeconfig: str | None = None) -> list[str]:
    """Return the command that adds a cluster's context to a kubeconfig."""
    return ["kind", "export", "kubeconfig", "--name", name, *(["--kubeconfig", kubeconfig] if kubeconfig else [])]


@change("write a kubeconfig")
def export(name: str, kubeconfig: str) -> None:
    """Add a cluster's context to a kubeconfig. Raises LabError."""
    try:
        _run(export_argv(name, kubeconfig), timeout=_ANSWER)
    except LabError as error:
        raise LabError(
            f"the context of {name} cannot be written to {kubeconfig}",
            hint="name another file by --kubeconfig",
            command=error.command,
            stderr=error.stderr,
            id="kubeconfig.unusable",
        ) from error


def context_in(kubeconfig: str, name: str) -> dict[str, Any] | None:
    """Return the entry of a cluster in a kubeconfig; None if it has none. Raise LabError for any other file."""
    try:
        told = yaml.safe_load(Path(kubeconfig).read_text(encoding="utf-8")) or {}
        clusters = {one["name"]: dict(one["cluster"]) for one in told.get("clusters") or []}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise LabError(
            f"{kubeconfig} is not a readable kubeconfig",
            hint="name another file by --kubeconfig, or remove this one",
            stderr=str(error),
            id="kubeconfig.unusable",
        ) from error
    return clusters.get(f"kind-{name}")


def delete_argv(name: str, kubeconfig: str | None = None) -> list[str]:
    """Return the command that deletes a cluster, and its context from the kubeconfig."""
    return ["kind", "delete", "cluster", "--name", name, *(["--kubeconfig", kubeconfig] if kubeconfig else [])]


@change("delete a cluster")
def delete(name: str, kubeconfig: str | None) -> Result:
    """Delete a cluster; the caller checks whether it is gone."""
    return _run(delete_argv(name, kubeconfig), timeout=_ANSWER, ok=range(256))


def kubeconfig_of(name: str) -> dict[str, Any]:
    """Return the administrator's configuration for a cluster. Raise IncompleteClusterError if it was never created."""
    try:
        told = _run(["kind", "get", "kubeconfig", "--name", name], timeout=_ANSWER).stdout
    except LabError as error:
        if "admin.conf: No such file" not in (error.stderr or ""):
            raise
        raise IncompleteClusterError(
            f"the cluster {name} has no Kubernetes: its set-up did not finish", hint="merlab up"
        ) from error
    return dict(yaml.safe_load(told))


def known(name: str) -> dict[str, Any] | None:
    """Return the entry of a cluster in the kubeconfig that kubectl would read; None if it has none."""
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
    """Copy images from Docker to the nodes. Raise LabError; if a disk is full, it names which."""
    try:
        # kind saves them, possibly gigabytes, in a folder that stays there if it is ended midway
        with _folder() as folder:
            _run(load_argv(name, refs), timeout=_LOAD, TMPDIR=folder)
    except LabError as error:
        raise not_loaded(error, refs) from error


def not_loaded(error: LabError, refs: Sequence[str]) -> LabError:
    """Describe why images do not get into a node: kind has Docker save them to a file here, which ctr imports there."""
    said = error.stderr or ""
    what, hint = f"kind could not load {', '.join(refs)} into the node", "merlab doctor"
    if "no space left on device" in said:
        node = re.search(r'"docker exec [^"]*?(\S+) ctr ', said)
        if node:
            what = f"there is no room on the disk of the node {node[1]} for {', '.join(refs)}"
            hint = f"docker exec {node[1]} df -h /var"
        else:
            what = f"there is no room on the disk with {tempfile.gettempdir()} to save {', '.join(refs)}"
            hint = f"df -h {tempfile.gettempdir()}"
    return LabError(what, hint=hint, command=error.command, stderr=error.stderr, id="image.not_pulled")


# -- what a merlab that was killed may have left


def at_work(name: str) -> list[int]:
    """Return the PIDs of kind processes that create the cluster `name` and that a killed merlab of this user's left.

    A merlab that is killed cannot end them. Anybody can give a process such arguments. So it must be this user's, run
    the program kind, and have in its environment the mark of a merlab that no longer runs.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if is_orphan(process, name):
                found.append(int(process.name))
    return found


def is_orphan(process: Path, name: str) -> bool:
    """Report whether `process`, a folder of /proc, is such a one. Raise OSError if it is gone or not visible."""
    argv = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    if [Path(argv[0]).name, *argv[1:5]] != [_COMMAND, "create", "cluster", "--name", name]:
        return False
    # The owner of the folder is no proof: it is root for a process that may not be dumped.
    status = (process / "status").read_text(encoding="utf-8", errors="replace")
    uids = re.search(r"^Uid:((?:\s+\d+){4})$", status, re.MULTILINE)
    if uids is None or {int(uid) for uid in uids[1].split()} != {os.geteuid()}:
        return False
    program = os.readlink(process / "exe").removesuffix(" (deleted)")  # noqa: PTH115 - it may be of a file that is gone
    # The entry of this name on PATH may be a link to kind-linux-amd64.
    if Path(program).name not in (_COMMAND, Path(shutil.which(_COMMAND) or _COMMAND).resolve().name):
        return False
    return _is_abandoned((process / "environ").read_bytes().split(b"\0"))


def _is_abandoned(environment: Sequence[bytes]) -> bool:
    """Report whether an environment has the mark of a merlab that no longer runs."""
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
    """Return when a process began, in clock ticks after boot: this and its PID identify it. Raises OSError."""
    return started(read_text(Path(f"/proc/{pid}/stat")))


def _owner(path: str) -> str | None:
    parts = [part for part in Path(path).parts if part.startswith(_TEMPORARY)]
    return parts[0].removeprefix(_TEMPORARY).partition("-")[0] if parts else None


@change("end a process")
def end(pid: int, name: str) -> None:
    """End such a process; leave it alone if it is gone already, or its PID is another process's by now."""
    try:
        held = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # A process that is held cannot change any more, so it is checked only now.
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
