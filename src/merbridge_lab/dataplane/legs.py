"""The legs of a pod's requests that are redirected: a value, decided by reader_legs.py."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Profile(enum.Enum):
    """How much is redirected."""

    #: For anybody's pods.
    SAFE = "safe"
    #: For apps that are known to read redirected bytes well: those of the embedded lab.
    ALL = "all"


@dataclass(frozen=True)
class Legs:
    """Which legs are redirected; `why` is one sentence on the app's sockets."""

    between_sidecars: bool
    out_of_app: bool
    into_app: bool
    why: str


ALL_LEGS = Legs(True, True, True, "app sockets: all that they send and read is redirected, as asked for")
