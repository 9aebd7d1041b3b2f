"""A separate Docker daemon, if none answers.

It shares nothing with an installed one: its data are in the cache, everything else is in one folder under /run. It sets
no rule, bridge, address or sysctl in the machine's network (kind's own network creates a bridge, which is removed
again).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster import builds

from merbridge_lab import polling

_USUAL = "/run/merlab-cluster"
#: The daemon's folder. Another one (MERLAB_CLUSTER_RUN) means another daemon, with images and a cluster of its own.
RUN = Path(os.environ.get("MERLAB_CLUSTER_RUN") or _USUAL)
#: Whether a daemon of our own is wanted, also where another one answers.
IS_APART = Path(_USUAL) != RUN
SOCKET = f"unix://{RUN}/docker.sock"
_PIDFILE = RUN / "docker.pid"
_CGROUP = RUN.name
#: Exists while the daemon must outlive the command that started it. Without this file, a killed test left the daemon.
_KEPT = RUN / "kept"


def answers(host: str | None = None) -> bool:
    """Report whether a daemon answers there, or wherever docker would look by itself."""
    if not shutil.which("docker"):
        return False
    environment = os.environ | ({"DOCKER_HOST": host} if host else {})
    argv = ("docker", "version", "--format", "{{.Server.Version}}")
    limit = polling.limit(30)
    return subprocess.run(argv, check=False, capture_output=True, env=environment, timeout=limit).returncode == 0


def choose() -> bool:
    """Make docker and kind use the existing daemon. Return whether there is one."""
    begins = f"{Path(_USUAL).name}-"  # the folder is removed in the end, and gives its name to a cgroup
    if IS_APART and not (RUN.is_absolute() and RUN.name.startswith(begins)):
        sys.exit(f"test cluster: MERLAB_CLUSTER_RUN={RUN} is no folder of its own: expected {_USUAL}-NAME")
    if IS_APART or ours():
        os.environ["DOCKER_HOST"] = SOCKET
    return answers()


def ours() -> bool:
    """Report whether our own daemon is running."""
    return _pid() is not None and answers(SOCKET)


def start(*, keep: bool = False) -> None:
    """Ensure that a daemon answers. Unless it must be kept, the caller calls `release` in the end."""
    if not choose():
        _start()
    if keep and ours():
        _KEPT.touch()


def release() -> None:
    """Stop the daemon if it is ours, and nobody asked to keep it."""
    if ours() and not _KEPT.exists():
        stop()


def _data() -> Path:
    """Return where the images are: two daemons cannot share them."""
    return builds.cache() / (f"docker-{RUN.name}" if IS_APART else "docker")


def surroundings() -> dict[str, str]:
    """Return the additions to the environment that keep merlab's own files apart; none for the usual test cluster."""
    if not IS_APART:
        return {}
    temporary = builds.cache() / f"tmp-{RUN.name}"  # not below /run: it holds whole images
    temporary.mkdir(exist_ok=True)
    return {"TMPDIR": str(temporary), "XDG_STATE_HOME": str(RUN / "state")}


def _start() -> None:
    if os.geteuid() != 0:
        sys.exit("test cluster: no Docker daemon answers, and starting one takes root")
    builds.need("dockerd", "docker.io")
    runc = builds.module("small") / "runc"
    RUN.mkdir(mode=0o700, exist_ok=True)
    settings = {
        "data-root": str(_data()),
        "exec-root": str(RUN / "exec"),
        "pidfile": str(_PIDFILE),
        "hosts": [SOCKET],
        "bridge": "none",
        "iptables": False,
        "ip6tables": False,
        "ip-forward": False,
        "ip-masq": False,
        "cgroup-parent": f"/{_CGROUP}",
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "runtimes": {"merlab": {"path": str(runc)}},
        "default-runtime": "merlab",
    }
    (RUN / "daemon.json").write_text(json.dumps(settings, indent=2))
    builds.say("starting a Docker daemon of our own")
    with (RUN / "docker.log").open("w") as log:
        argv = ("dockerd", "--config-file", RUN / "daemon.json")
        started = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + polling.limit(60)
    while not answers(SOCKET):
        if started.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join((RUN / "docker.log").read_text().splitlines()[-10:])
            sys.exit(f"test cluster: dockerd did not start; the end of {RUN}/docker.log:\n{tail}")
        time.sleep(0.2)
    os.environ["DOCKER_HOST"] = SOCKET


def stop() -> None:
    """Stop our daemon, with all containers, networks and volumes. Its images stay in the cache."""
    pid = _pid()
    if pid is not None:
        if answers(SOCKET):
            _empty()
        builds.say("stopping our Docker daemon")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            _await_end(pid, 30)
            os.kill(pid, signal.SIGKILL)
    _remove_cgroups()
    for folder in (RUN, *((Path(surroundings()["TMPDIR"]),) if IS_APART else ())):
        builds.remove(folder)


def _pid() -> int | None:
    """Return the process of our daemon, if it runs and is one."""
    try:
        pid = int(_PIDFILE.read_text())
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if str(RUN / "daemon.json").encode() in argv else None


def _empty() -> None:
    environment = os.environ | {"DOCKER_HOST": SOCKET}

    def docker(*words: str) -> str:
        found = subprocess.run(("docker", *words), check=False, capture_output=True, text=True, env=environment)
        return found.stdout

    if containers := docker("ps", "-aq").split():
        docker("rm", "--force", "--volumes", *containers)
    docker("network", "prune", "--force")
    docker("volume", "prune", "--force")
    docker("image", "prune", "--force")


def _await_end(pid: int, seconds: float) -> None:
    """Wait for a process, whether it is a child of ours or not. Raise ProcessLookupError once it is gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        os.kill(pid, 0)
        time.sleep(0.1)


def _remove_cgroups() -> None:
    for hierarchy in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
        top = hierarchy / _CGROUP
        if top.is_dir():
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
