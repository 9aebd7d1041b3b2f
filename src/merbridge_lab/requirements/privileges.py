"""What merlab may do as root, and how to get what is missing: in a container that is an option of its runtime."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from merbridge_lab.adapters import capabilities, own_container
from merbridge_lab.requirements.requirement import FAIL, PASS, Requirement
from merbridge_lab.text import read_text

#: What merlab does as root.
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_ADMIN",
)
_MACHINE = Path("/")


def assess(root: Path) -> Requirement:
    """Check for root and its privileges: in a container it may be root in name only."""
    needed = "root, with " + ", ".join(CAPABILITIES)
    if os.geteuid() != 0:
        hint = as_root("sudo merlab up --lab embedded", root)
        return Requirement("root", FAIL, f"user {os.geteuid()}", needed, hint)
    if missing := capabilities.missing(CAPABILITIES, _status(root)):
        return Requirement("root", FAIL, f"root without {', '.join(missing)}", needed, remedy(root))
    if own_container.is_root_in_name_only(root):
        hint = "run merlab as root of the machine: not in a user namespace, rootless Docker, or Docker's userns-remap"
        return Requirement("root", FAIL, "root of a user namespace alone", needed, hint)
    return Requirement("root", PASS, "root", needed)


def remedy(root: Path = _MACHINE) -> str:
    """Return the remedy for what only a privileged process may do."""
    if runtime := own_container.command(root):
        return f"start this container with: {runtime} run --privileged"
    return "run merlab on the machine itself, or in a privileged container (docker run --privileged)"


def as_root(typed: str, root: Path = _MACHINE) -> str:
    """Return what an ordinary user does to run a command as root: the command, or what starts a container as root.

    In a container sudo is of use if it is installed and root has what merlab needs; nobody knows root's password.
    """
    runtime = own_container.command(root)
    if not runtime or (
        shutil.which("sudo") and not own_container.forbids_sudo(_status(root)) and not is_beyond_reach(root)
    ):
        return typed
    return f"start this container with: {runtime} run --user 0 --privileged"


def is_beyond_reach(root: Path = _MACHINE) -> bool:
    """Report whether a capability is missing that no program started here can have either."""
    return bool(capabilities.missing(CAPABILITIES, _status(root), among="CapBnd"))


def _status(root: Path) -> str:
    return read_text(root / "proc/self/status")
