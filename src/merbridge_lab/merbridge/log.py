"""The output of upstream's pod, recognized: ready, or why it crashes, and which known issue that is.

The texts are upstream's (mbctl's log, the errors of its Makefile and of bpftool); the issues are those of
github.com/merbridge/merbridge.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from merbridge_lab.text import lines_of

#: mbctl watches the node's pods, and attaches its programs next.
READY = "Pod Watcher Ready"

_ISSUES = "https://github.com/merbridge/merbridge/issues/"


@dataclass(frozen=True)
class Crash:
    """Why upstream's pod ended. `cgroup`: the crash of the walkthrough; `issue`: the most similar known one, or 0."""

    what: str
    said: str
    cgroup: bool = False
    issue: int = 0

    @property
    def link(self) -> str:
        """The URL of the most similar known issue."""
        return f"{_ISSUES}{self.issue}" if self.issue else ""


# The first matching line is the cause: a failed load is tried a second time, and that output follows from the first.
_CAUSES: tuple[tuple[str, str, bool, int], ...] = (
    (r"does not have cgroupv2 enabled", "it finds no cgroup2", True, 60),
    (r"Error: invalid attach type", "it finds two cgroup2 mounts and takes them for one", True, 38),
    (
        r"Error: failed to attach program|can't open cgroup|[Ff]ailed to query",
        "it cannot attach to its cgroup",
        True,
        38,
    ),
    (r"Error: failed to pin program|can't pin", "it finds the pins of one that was killed", True, 106),
    (r"sock_pair_map.*(?:Invalid argument|EINVAL|errno 22)", "this kernel refuses its map sock_pair_map", False, 270),
    (r"legacy map definitions", "its bpftool is newer than its programs: maps are defined in the old way", False, 0),
    (r"unknown func|invalid func|Unknown symbol", "this kernel is too old for its programs", False, 80),
    (
        r"fatal error: .*(?:not found|No such file)|\d+ errors? generated",
        "its programs do not compile here",
        False,
        356,
    ),
    (r"mount: .*(?:permission denied|failed)|must be superuser", "it may not mount a bpffs", False, 144),
    (r"start watcher failed|create client error", "it cannot watch the pods of the cluster", False, 0),
)
# mbctl's own last words, which report only that something failed. They use another stream than the errors of its
# commands, and may come before them.
_LAST_WORDS: tuple[tuple[str, str, bool, int], ...] = (
    (r"failed to attach ebpf programs", "it cannot attach its programs", True, 38),
    (r"failed to load ebpf programs|(?<!un)load failed", "its programs cannot be loaded", False, 127),
)
_LINES = 12


def ready(log: str) -> bool:
    """Report whether its pod watcher has reported readiness."""
    return READY in log


def crash(log: str) -> Crash | None:
    """Describe why the pod ended, by the first of upstream's lines that shows it; None if the log has no known text."""
    for known in (_CAUSES, _LAST_WORDS):
        for line in lines_of(log):
            for pattern, what, cgroup, issue in known:
                if re.search(pattern, line):
                    return Crash(what, line.strip(), cgroup, issue)
    return None


def tail(log: str) -> str:
    """Return upstream's own last lines."""
    return "\n".join(lines_of(log.strip())[-_LINES:])
