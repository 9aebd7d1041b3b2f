"""An app that runs as the server in a pod."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.apps.place import LabNotUpError

if TYPE_CHECKING:
    from tests.apps.place import Place


@dataclass
class Server:
    """An app that runs in a pod."""

    place: Place
    pod: str
    port: int
    argv: list[str]
    room: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def log(self) -> Path:
        """What it said."""
        return self.room / "output"

    def start(self, seconds: float = 30.0) -> None:
        """Start it, and wait until it listens. Raise LabNotUpError if it does not."""
        self.place.bring(self.pod, self.room)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.place.argv(self.pod, self.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        deadline = time.monotonic() + seconds
        while not self._listens():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = self.log.read_text(errors="replace")[-1500:]
                raise LabNotUpError(f"{self.argv[0]} does not listen on {self.port} in {self.place.name}:\n{said}")
            time.sleep(0.02)

    def _listens(self) -> bool:
        text = f":{self.port:04X} "
        netns = f"/proc/{self.process.pid}/net" if self.process else ""
        with contextlib.suppress(OSError):
            for name in ("tcp", "tcp6"):
                for line in Path(netns, name).read_text().splitlines():
                    fields = line.split()
                    # In the pod: before it has entered it, it sees the machine's.
                    if fields[3] == "0A" and f"{fields[1]} ".endswith(text):
                        return True
        return False

    def stop(self) -> None:
        """End it and all it started."""
        if self.process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1.5)
        # Workers of a stopped master hold the port until they are gone.
        deadline = time.monotonic() + 5
        while _members(self.process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.process = None


def _members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
