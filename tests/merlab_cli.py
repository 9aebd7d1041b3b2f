"""merlab as a person calls it, from a test: its environment, its JSON, and a running one that can be stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MERLAB = str(Path(sys.executable).with_name("merlab"))


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a call; the outcome must not depend on the terminal of the tests."""
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "MERLAB_LAB")}
    return {**kept, **changes}


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Read the one JSON object that stdout must hold."""
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    return dict(json.loads(done.stdout))


class Started:
    """A running merlab, in a separate session; `patience` is how long its end is awaited, in seconds."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], patience: float) -> None:
        self._argv, self._env, self._patience = argv, env, patience
        self.start()

    def start(self) -> None:
        """Start it; or again, after it has ended."""
        self._done: subprocess.CompletedProcess[str] | None = None
        self.process = subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=self._env,
        )

    def end(self, *signals: int) -> subprocess.CompletedProcess[str]:
        """Send signals, and wait for the end."""
        if self._done is None:
            for each in signals:
                self.process.send_signal(each)
            out, err = self.process.communicate(timeout=self._patience)
            self._done = subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)
        return self._done
