"""The command line: parse, pick a lab, run, exit status. Nothing else."""

from __future__ import annotations

import errno
import os
import sys

# Imported for the commands they define, in the order in which the help lists them.
# isort: off
from merbridge_lab.cli import lifecycle, inspection, bench, pod_shell, building, guests, agent, planned, help as _help  # noqa: F401
from merbridge_lab.cli.app import app

# isort: on
from merbridge_lab import exit_codes

__all__ = ["app", "main"]


def main() -> None:
    """Run merlab; the console script."""
    # The lab's tools are the system's; `su` without a dash omits their directories from PATH.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    # Others must not be able to write to merlab's files; files that others must read get their mode when they are
    # created. None of them is closed to its owner.
    os.umask((os.umask(0o022) | 0o022) & 0o077)
    try:
        app()
    except OSError as error:
        # Help is printed by typer; commands report by themselves what they could not print.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        sys.stderr.write(f"merlab: not all that merlab prints could be written: {error.strerror}\n")
        _drop_output()
        sys.exit(exit_codes.CANNOT)


def _drop_output() -> None:
    """Have Python write what it still holds for stdout nowhere: at its end it would fail once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
