"""Whether merlab runs in a container, whose runtime it is, and what that runtime leaves to root there."""

from __future__ import annotations

from pathlib import Path

from merbridge_lab.text import lines_of

#: What a runtime puts into its containers, and the command that starts one.
_MARKS = {".dockerenv": "docker", "run/.containerenv": "podman"}
#: The namespaces that the kernel begins with have fixed numbers (include/linux/proc_ns.h, PROC_…_INIT_INO).
_FIRST = {"pid": 0xEFFFFFFC, "user": 0xEFFFFFFD, "uts": 0xEFFFFFFE}


def command(root: Path = Path("/")) -> str:
    """Return the command that starts containers like this one; "" in none, or in one of an unknown runtime.

    The mark alone does not tell: a virtual machine may be made of an image's files.
    """
    runtime = next((name for mark, name in _MARKS.items() if (root / mark).exists()), "")
    return runtime if _has_own("pid", root) or _has_own("uts", root) else ""


def has_machines_pids(root: Path = Path("/")) -> bool:
    """Report whether this is a container in which process 1 is the machine's own (docker run --pid host)."""
    return bool(command(root)) and not _has_own("pid", root)


def is_root_in_name_only(root: Path = Path("/")) -> bool:
    """Report whether this process is in a user namespace: its capabilities count there, and not for the kernel."""
    return _has_own("user", root)


def _has_own(kind: str, root: Path) -> bool:
    try:
        return str((root / "proc/self/ns" / kind).readlink()) != f"{kind}:[{_FIRST[kind]}]"
    except OSError:
        return False


def forbids_sudo(status: str) -> bool:
    """Report whether no program gives more rights to whoever starts it, from the text of a /proc/PID/status."""
    return "NoNewPrivs:\t1" in lines_of(status)
