"""Connections of other kinds than curl's, and what the dataplane has of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Leg:
    """One connection that the dataplane carries: where it was meant to go, the bytes it moved from either side."""

    original: str
    from_dialling: int
    from_accepting: int


@dataclass(frozen=True)
class Dial:
    """One connection of a client's, and what came of it.

    `how` says in words how it was dialled; `wanted` is whom, `remote` whom the client believes to speak to. `legs` are
    those of its way that the dataplane carries, by their names; `needed` those that it must. `unasked` says why this
    machine has no such connections, where it has none.
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
