"""Connections other than curl's, and what the dataplane records of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Leg:
    """One connection that the dataplane carries: its original destination, and the bytes it moved from each end."""

    original: str
    from_dialling: int
    from_accepting: int


@dataclass(frozen=True)
class Dial:
    """One connection of a client, and its result.

    `how` describes how the client dialled. `wanted` is the address that it dialled, `remote` its peer as the client
    sees it. `legs` are the legs of its path that the dataplane carries, by name; `needed` are those that it must carry.
    `unasked` explains why this machine cannot make such connections, if it cannot.
    """

    how: str
    wanted: str
    local: str
    remote: str
    sent: int
    received: int
    served: bool
    error: str = ""
    needed: tuple[str, ...] = ("outbound",)
    legs: Mapping[str, Leg] = field(default_factory=dict)
    unasked: str = ""
