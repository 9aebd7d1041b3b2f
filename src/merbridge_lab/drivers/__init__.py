"""Which lab there is, and which one a call means."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from merbridge_lab.requirements import Requirement

#: Labs that the design knows and this version has not built.
_PLANNED = ("kind", "cluster")


class Driver(Protocol):
    """One kind of lab: says whether it is up, what it needs, and opens it."""

    name: str

    def is_up(self) -> bool:
        """Whether a lab of this kind, or a part of one, is there."""

    def require_able(self) -> None:
        """Raise LabError when this process may not work with the lab."""

    def requirements(self) -> list[Requirement]:
        """Probe what this machine offers and lacks."""

    def open(self, *, keep: bool = False, backend: str | None = None) -> AbstractContextManager[Any]:
        """Give the lab for the length of the block.

        `keep` leaves rules flushed after a flush; `backend` is the kind of iptables for the rules ("nft", "legacy").
        """


def pick(asked: str | None) -> tuple[Driver, str]:
    """Pick a lab and say why: the one asked for, else the one that is up, else MERLAB_LAB, else auto.

    Raises LabError for a lab that is not built yet or does not exist.
    """
    from merbridge_lab.drivers.embedded import EmbeddedDriver

    embedded = EmbeddedDriver()
    name, why = asked, "asked for"
    if name is None and embedded.is_up():
        return embedded, "it is up"
    if name is None:
        name, why = os.environ.get("MERLAB_LAB") or "auto", "MERLAB_LAB"
    if name == "auto":
        name, why = "embedded", "auto: the one lab that is built so far"
    if name == embedded.name:
        return embedded, why
    if name in _PLANNED:
        raise LabError(f"the {name} lab is planned, but not built yet", hint="merlab up --lab embedded")
    raise LabError(
        f"there is no lab called {name!r}; there are auto, embedded, {', '.join(_PLANNED)}",
        hint="merlab up --lab embedded",
    )
