"""The agent's log: one JSON object a line, on stderr."""

from __future__ import annotations

import logging
import sys
import time

from merbridge_lab.text import as_json

_LOG = logging.getLogger("merlab.agent")


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "told", {}),
        }
        return as_json(told)


def begin() -> None:
    """Write the log to stderr from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    _LOG.handlers[:] = [handler]
    _LOG.propagate = False
    _LOG.setLevel(logging.INFO)


def say(message: str, **told: object) -> None:
    """Log an event with its details."""
    _LOG.info(message, extra={"told": told})


def warn(message: str, **told: object) -> None:
    """Log something that does not work."""
    _LOG.warning(message, extra={"told": told})
