"""Bring processes into a pod: argv lists that join its cgroup, its namespaces and its user.

The cgroup is joined first: a socket belongs permanently to the cgroup of its creator.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: The exact environment of every daemon of a pod.
ENVIRONMENT = frozenset({f"PATH={PATH}", "HOME=/", "LANG=C.UTF-8"})

# Fixed texts. A daemon may open as many files as the machine allows (thousands of connections), and does not inherit
# merlab's limits on files, time and memory. Everything that varies is an argument. An error message of the shell names
# what could not be joined.
_JOIN = 'echo 0 >"$0/cgroup.procs" && exec "$@"'
_DAEMON = (
    'cd / && echo 0 >"$0/cgroup.procs" && '
    '{ [ "$(ulimit -Hn)" = unlimited ] || [ "$(ulimit -Hn)" -ge 4096 ] || ulimit -n 4096 || :; } && '
    'ulimit -n "$(ulimit -Hn)" && for each in f t v; do '
    '[ "$(ulimit -$each)" = unlimited ] || ulimit -$each unlimited; done && '
    'umask 022 && exec </dev/null >>"$1" 2>&1 && shift && '
    'exec setsid --fork "$@"'
)


def _clean_environment() -> list[str]:
    # An http_proxy of the user would send the lab's requests elsewhere.
    terminal = os.environ.get("TERM")
    return ["env", "-i", f"PATH={PATH}", "HOME=/", "LANG=C.UTF-8", *([f"TERM={terminal}"] if terminal else [])]


def _into(netns: Path, mntns: Path | None, user: int) -> list[str]:
    mount = [f"--mount={mntns}"] if mntns is not None else []
    return ["nsenter", f"--net={netns}", *mount, f"--setgid={user}", f"--setuid={user}", "--"]


def as_user(cgroup: Path, netns: Path, mntns: Path, user: int, argv: Sequence[str]) -> list[str]:
    """Return the argv that runs `argv` in a pod as `user` (and the group of that number), with a clean environment."""
    return ["sh", "-c", _JOIN, str(cgroup), *_into(netns, mntns, user), *_clean_environment(), *argv]


def as_daemon(cgroup: Path, netns: Path, mntns: Path, user: int, log: Path, argv: Sequence[str]) -> list[str]:
    """Return the argv that starts `argv` in a pod as `user` and returns at once.

    The process has its own session, no terminal and none of our open files. It appends its output to `log`.
    """
    inside = [*_into(netns, mntns, user), "env", "-i", *sorted(ENVIRONMENT), *argv]
    return ["sh", "-c", _DAEMON, str(cgroup), str(log), *inside]


def as_root(netns: Path, argv: Sequence[str]) -> list[str]:
    """Return the argv that runs `argv` as root with the host's tools in a network namespace."""
    return ["nsenter", f"--net={netns}", *argv]
