"""A recording of the terminal in the asciicast v2 format, with a marker for each step.

The format is at docs.asciinema.org/manual/asciicast/v2. Players and converters for it exist; merlab needs none of them.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from merbridge_lab.errors import LabError


class Recording:
    """A file that takes what the terminal shows; `width` and `height` are the size of the screen, in cells."""

    def __init__(self, path: str, width: int, height: int) -> None:
        self.width, self.height = width, height
        #: Why not everything could be written. It is kept, not raised: a print may stand between two changes.
        self.lost: OSError | None = None
        try:
            self._file = Path(path).open("w", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise LabError(
                f"the recording cannot be written to {path}: {error.strerror}",
                hint="merlab up --record up.cast",
                id="file.not_written",
            ) from error
        self._began = time.monotonic()
        head = {"version": 2, "width": width, "height": height, "timestamp": int(time.time())}
        head["env"] = {"TERM": os.environ.get("TERM", "xterm-256color"), "SHELL": "/bin/sh"}  # type: ignore[assignment]
        self._write(head)

    def _write(self, value: object) -> None:
        if self.lost is None:
            try:
                self._file.write(json.dumps(value) + "\n")
            except OSError as error:
                self.lost = error

    def _event(self, kind: str, text: str) -> None:
        seconds = round(time.monotonic() - self._began, 6)
        self._write([seconds, kind, text])

    def output(self, text: str) -> None:
        """Record what is written to the terminal."""
        # A terminal in raw mode, as a player's is, needs the carriage return that the kernel adds here.
        self._event("o", text.replace("\r\n", "\n").replace("\n", "\r\n"))

    def marker(self, label: str) -> None:
        """Record a marker: a place that a player can go to."""
        self._event("m", label)

    def close(self) -> None:
        """Write the rest of the file; what cannot be written is in `lost`."""
        try:
            self._file.close()
        except OSError as error:
            self.lost = self.lost or error
