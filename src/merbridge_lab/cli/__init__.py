"""The command line: parse, pick a lab, run, exit status. Nothing else."""

from __future__ import annotations

import os

# Imported for the commands they define, in the order in which the help lists them.
# isort: off
from merbridge_lab.cli import lifecycle, inspection, bench, pod_shell, building, guests, agent, planned, help as _help  # noqa: F401
from merbridge_lab.cli.app import app
# isort: on

__all__ = ["app", "main"]


def main() -> None:
    """Run merlab; the console script."""
    # The lab's tools are the system's; `su` without a dash omits their directories from PATH.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    # Others must not be able to write to merlab's files; files that others must read get their mode when they are
    # created. None of them is closed to its owner.
    os.umask((os.umask(0o022) | 0o022) & 0o077)
    app()
