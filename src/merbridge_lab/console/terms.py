"""Words of merlab that not everybody knows, each explained once a run where it first appears."""

from __future__ import annotations

import re

_TERMS = {
    "node": "node: the machine that pods run on (embedded lab: a network namespace)",
    "control client": "control client: a copy of sleep that eBPF does not serve, for comparison",
    "leg": "leg: a part of the path: app to sidecar, sidecar to sidecar, sidecar to app",
    "cell": "cell: one combination of eBPF on or off, and rules present or flushed",
}


class Terms:
    """Which words were explained already; one for each run."""

    def __init__(self) -> None:
        self._left = dict(_TERMS)

    def new_in(self, *texts: str) -> list[str]:
        """Return an explanation, of one line, for each word that is used here for the first time."""
        used = [word for word in self._left if any(re.search(rf"\b{word}s?\b", text) for text in texts)]
        return [self._left.pop(word) for word in used]
