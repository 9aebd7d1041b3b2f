"""The kind lab in a virtual machine: this machine's own files, a kernel of Debian, cgroup v2 alone, and no network.

The images are those of the test cluster, on a disk: the guest's Docker finds them there, and builds and pulls nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.cluster import builds
from tests.guests import packages
from tests.guests.distribution import by_line

from merbridge_lab import polling
from merbridge_lab.adapters.virtual_machine import EMULATED
from merbridge_lab.guest import boot, kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: The folder of the Docker daemon that builds the images here, besides which nothing may use them: see engine.RUN.
_BUILDER = "/run/merlab-cluster-guest"
#: Where nothing of a disk is written until it is used, its size costs nothing.
_DISK = "16G"
#: How the folder of a disk begins, and the age at which it belongs to no run any more, in seconds.
_PREFIX, _OLD = "guest-disk-", 86400.0
#: Docker, Kubernetes and Istio at once; files that are written are in memory, unless Docker has them.
_MEMORY = "8G"
#: How long all phases may take, in seconds.
_LIMIT = 3 * 3600.0
#: How many times longer than usual merlab waits where each instruction is emulated. An `up` there is that of a cluster
#: of several processes on one CPU, so it is slower than the embedded lab's.
_SLOWNESS = "12"


def _note(said: str) -> None:
    sys.stderr.write(f"{said}\n")


@contextlib.contextmanager
def _disk() -> Iterator[Path]:
    """Yield a file system with what a Docker daemon has of the test cluster's images, built if they are missing.

    The daemon that builds them has ended by then, and its data stay in the cache.
    """
    run = os.environ.get("MERLAB_CLUSTER_RUN") or _BUILDER
    build = (sys.executable, "-m", "tests.cluster", "build")
    subprocess.run(build, cwd=builds.ROOT, env=os.environ | {"MERLAB_CLUSTER_RUN": run}, stdout=2, check=True)
    data = builds.cache() / f"docker-{Path(run).name}"
    for old in builds.cache().glob(f"{_PREFIX}*"):  # of a run that was killed
        if time.time() - old.stat().st_mtime > _OLD:
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=builds.cache(), prefix=_PREFIX) as made:
        disk = Path(made, "docker.img")
        # No journal: what the guest writes is lost with it.
        make = ("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-d", data, disk, _DISK)
        subprocess.run(make, stdout=2, check=True)
        yield disk


@dataclass(frozen=True)
class KindLab:
    """The release of Debian whose kernel the guest runs."""

    kernel: str

    def run(self, phases: Sequence[str], hear: Callable[[str, dict[str, Any]], None]) -> int:
        """Go through the phases of inside_kind.py, or all; return 0 if all held, 1 if one did not.

        `hear` gets the version of the kernel, and each phase as it ends. Raises LabError and CalledProcessError.
        """
        packages.install()
        kernel = kernels.of_release(self.kernel, _note)
        by = boot.accelerator(kernel)
        with _disk() as disk:
            return boot.run(
                kernel,
                [sys.executable, "-m", "tests.guests.inside_kind", *phases],
                timeout=_LIMIT,
                by=by,
                hear=by_line(lambda line: hear(kernel.version, json.loads(line))),
                environment={
                    "MERLAB_CLUSTER_CACHE": str(builds.cache()),
                    "MERLAB_CLUSTER_NODE": os.environ.get("MERLAB_CLUSTER_NODE", ""),
                    **({polling.SLOWNESS: _SLOWNESS} if by == EMULATED else {}),
                },
                folder=builds.ROOT,
                memory=_MEMORY,
                disk=disk,
            ).status
