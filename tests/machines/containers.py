"""A real Docker daemon of its own, with an image of Debian 13 that has merlab in it; for tests, and gone with them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster import builds

if TYPE_CHECKING:
    from tests.machines.userland import Userland

#: The daemon's folder. No other one has it: its data are removed in the end.
_RUN = Path("/run/merlab-cluster-containers")
_IMAGE = "merlab.test/machine"


@dataclass(frozen=True)
class Docker:
    """The daemon's command line; containers have the environment, and are called like the lab."""

    name: str
    environment: dict[str, str]

    def __call__(self, *words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command of docker; return what it printed, and its exit status."""
        try:
            return subprocess.run(
                ["docker", *words],
                env={**os.environ, "DOCKER_HOST": f"unix://{_RUN}/docker.sock"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            self.remove(self.name)
            raise

    def run(self, options: tuple[str, ...], *argv: str, name: str = "", timeout: float = 300) -> str:
        """Run a command in a new container without a network; return what it printed. It is removed at its end."""
        environment = (word for each in self.environment.items() for word in ("--env", "=".join(each)))
        started = ("--rm", "--name", name or self.name, "--network", "none", *environment, *options, _IMAGE)
        done = self("run", *started, *argv, timeout=timeout)
        return done.stdout + done.stderr

    def remove(self, *names: str) -> None:
        """Remove containers, running or not."""
        self("rm", "--force", *names)


def start(debian: Userland, hold: Path, name: str, merlab: str) -> Docker:
    """Start the daemon, and make the image of a userland. `merlab` is how it is called there."""
    _engine("start")
    docker = Docker(name, {"MERLAB_NAME": name, "merlab": merlab})
    # The files of its root alone: a runtime mounts the others.
    packing = [*debian.prefix(hold), "tar", "-c", "--one-file-system", "-C", "/", "."]
    with subprocess.Popen(packing, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as packed:
        subprocess.run(
            ["docker", "import", "-", _IMAGE],
            env={**os.environ, "DOCKER_HOST": f"unix://{_RUN}/docker.sock"},
            stdin=packed.stdout,
            stdout=subprocess.DEVNULL,
            timeout=600,
            check=True,
        )
    assert packed.returncode == 0
    return docker


def stop() -> None:
    """Stop the daemon with all containers, and remove its data."""
    _engine("stop")
    builds.remove(builds.cache() / f"docker-{_RUN.name}")


def _engine(command: str) -> None:
    # In a process of its own: the engine takes its folder from the environment once.
    argv = [sys.executable, "-m", "tests.cluster", command]
    environment = {**os.environ, "MERLAB_CLUSTER_RUN": str(_RUN)}
    subprocess.run(argv, cwd=builds.ROOT, env=environment, timeout=900, check=True)
