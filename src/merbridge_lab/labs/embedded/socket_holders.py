"""Check that nobody else holds the sockets of apps and sidecars; a holder may accept, read and answer there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from merbridge_lab.adapters import descriptors, tcp_sockets
from merbridge_lab.adapters.procfs import look
from merbridge_lab.polling import poll_until
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from merbridge_lab.adapters.procfs import Process
    from merbridge_lab.labs.embedded.pod import Pod

#: A process that was just forked by a process that reads sockets (merlab itself) has them until it executes, in
#: seconds.
_SETTLED = 0.5
#: Maximum length of a command line in a sentence.
_LONGEST = 80


def problems(pods: Sequence[Pod]) -> list[str]:
    """Describe, one sentence each, which other processes hold a socket of a pod's app or sidecar."""
    found: list[str] = []

    def is_alone() -> bool:
        try:
            found[:] = _problems(pods)
        except OSError as error:
            where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            found[:] = [str(unread("who holds the sockets of apps and sidecars", error, where))]
        return not found

    poll_until(is_alone, timeout=_SETTLED, awaiting="others to let go of the sockets of apps and sidecars")
    return found


def _problems(pods: Sequence[Pod]) -> list[str]:
    owners: dict[int, tuple[Pod, str, Process]] = {}
    for pod in pods:
        for kind, seen in pod.processes.seen().items():
            owners |= dict.fromkeys(seen.sockets(), (pod, kind, seen))
    holders = descriptors.holders(owners)
    told: dict[tuple[int, str, str], tuple[int, int]] = {}
    for inode, pids in holders.known.items():
        pod, kind, seen = owners[inode]
        for pid in pids - {seen.pid}:
            # If one process holds several sockets, the listening one is the most informative.
            ports = {each.inode: each.port for each in tcp_sockets.listening(pod.netns)}
            key = pid, kind, pod.spec.name
            told[key] = max(told.get(key, (0, 0)), (ports.get(inode, 0), inode))
    first = min((seen.started for _, _, seen in owners.values()), default=0)
    return [*_sentences(told), *_barred(holders.barred, first)]


def _barred(barred: dict[int, str], first: int) -> Iterator[str]:
    """Return the processes that cannot be read, except those that are older than all the sockets.

    Those (PID 1 of a container's machine, an agent that a security module guards) cannot have been started with one.
    """
    for pid, why in sorted(barred.items()):
        if (seen := look(pid)) is not None and seen.started >= first:
            yield f"whether process {pid} ({_short(seen.command)}) holds a socket of the lab's could not be read: {why}"


def _sentences(told: dict[tuple[int, str, str], tuple[int, int]]) -> Iterator[str]:
    for (pid, kind, name), (port, inode) in sorted(told.items()):
        seen = look(pid)
        who = "merlab itself" if pid == os.getpid() else _short(seen.command) if seen else "it has just ended"
        which = f"the one that listens on port {port}" if port else f"one of its connections (inode {inode})"
        yield f"process {pid} ({who}) holds a socket of the {kind} of {name}, too: {which}"


def _short(command: str) -> str:
    """Return a command line in one line: a script may be one of its words."""
    text = " ".join(command.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
