"""Which labs exist, and which one a command means."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from merbridge_lab.errors import LabError, UsageError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from merbridge_lab.labs.options import Options
    from merbridge_lab.managed_lab import ManagedLab
    from merbridge_lab.requirements import Requirement

#: Labs that are designed, but that this version has not built.
_PLANNED = ("cluster",)


class Driver(Protocol):
    """One kind of lab: reports whether it is up and what it needs, and opens it."""

    name: str
    #: The name of this lab. Labs of other names are not waited for, see lock.
    lab_name: str
    #: Which Docker it is on, as DOCKER_HOST names it; "" for the usual one, or none. Labs on others are not waited for.
    docker: str
    #: The context of its cluster for kubectl; "" if it has no cluster.
    context: str

    def is_up(self) -> bool:
        """Report whether a lab of this kind, or a part of one, exists."""

    def require_able(self) -> None:
        """Raise LabError if this process may not work with the lab."""

    def requirements(self) -> list[Requirement]:
        """Probe what this machine offers and lacks."""

    def open(
        self, *, keep: bool = False, backend: str | None = None, legs: str | None = None, pods: int | None = None
    ) -> AbstractContextManager[ManagedLab]:
        """Yield the lab for the duration of the block.

        `keep` leaves rules flushed after a flush. `backend` is the kind of iptables for the rules ("nft", "legacy").
        `legs` is the profile of what eBPF moves ("safe", "all"). `pods` is how many pods it has.
        """


def pick(asked: str | None) -> tuple[Driver, str]:
    """Pick a lab and explain why: the requested one, else the one that is up, else MERLAB_LAB, else auto.

    Raise LabError for a lab that is not built yet, UsageError for one that does not exist.
    """
    from merbridge_lab.labs.embedded.driver import EmbeddedDriver
    from merbridge_lab.labs.kind.driver import KindDriver

    built: tuple[EmbeddedDriver | KindDriver, ...] = (EmbeddedDriver(), KindDriver())
    embedded, kind = built
    for given, said in ((asked, "--lab"), (os.environ.get("MERLAB_LAB") or None, "MERLAB_LAB")):
        known = ("auto", *(each.name for each in built), *_PLANNED)
        if given is not None and given not in known:
            raise UsageError(f"{said}: there is no lab called {given!r}; there are {', '.join(known)}")
    name, why = asked, "asked for"
    if name is None:
        for driver in built:
            if driver.is_up():
                return driver, "it is up"
        name, why = os.environ.get("MERLAB_LAB") or "auto", "MERLAB_LAB"
    if name == "auto":
        if isinstance(kind, KindDriver) and kind.is_possible():
            return kind, "auto: kind, istioctl and a Docker that answers are available"
        return embedded, "auto: it needs nothing but this machine"
    for driver in built:
        if name == driver.name:
            return driver, why
    raise LabError(
        f"the {name} lab is planned, but not built yet", hint="merlab up --lab embedded", id="feature.not_built"
    )


def present() -> list[dict[str, Any]]:
    """List the labs that are up: kind of lab, name, and whether a command without --lab uses it."""
    from merbridge_lab.labs.embedded.driver import EmbeddedDriver
    from merbridge_lab.labs.kind.driver import KindDriver

    embedded, kind = EmbeddedDriver(), KindDriver()
    found = [(embedded.name, name) for name in embedded.names()]
    found += [(kind.name, kind.lab_name)] if kind.is_up() else []
    meant = (embedded if embedded.is_up() else kind).lab_name
    return [{"lab": lab, "name": name, "default": name == meant} for lab, name in found]


def tell(driver: Driver, options: Options) -> bool:
    """Pass the options of the call to a lab; return whether it accepts them: whether it is a lab on a cluster."""
    from merbridge_lab.labs.kind.driver import KindDriver

    if isinstance(driver, KindDriver):
        driver.options = options
        return True
    return False
