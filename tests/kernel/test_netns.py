"""Namespaces on the kernel, created in a mount namespace that is itself new."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.kernel

_PIN_MANY = """
import pathlib, sys
from merbridge_lab.adapters import mounts, netns

folder = pathlib.Path(sys.argv[1])
mounts.mount("test", folder, "tmpfs")
mounts.mount("none", folder, flags=mounts.MS_PRIVATE)
for number in range(16):
    netns.create(folder / str(number), netns.NEWNS)
    assert netns.is_pinned(folder / str(number))
"""


@pytest.mark.smoke
def test_mount_namespaces_are_pinned_in_one_made_a_moment_ago(tmp_path):
    # As in a container: since Linux 6.18 the numbers of new namespaces are not in order across CPUs.
    child = [sys.executable, "-c", _PIN_MANY, str(tmp_path)]
    everywhere = ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0)))
    for cpu in os.sched_getaffinity(0):
        done = subprocess.run(
            [
                "taskset",
                "-c",
                str(cpu),
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "taskset",
                "-c",
                everywhere,
                *child,
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
