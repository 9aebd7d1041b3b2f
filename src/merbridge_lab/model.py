"""Step and Check: the walkthrough as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from merbridge_lab.evidence import Finding
    from merbridge_lab.lab import Lab


class Kind(str, Enum):
    """What kind of step it is.

    ENSURE brings about a state that lasts: its act is skipped where its checks already hold, its undo runs at
    `down`. DEMONSTRATE always acts and always cleans up behind itself.
    """

    ENSURE = "ensure"
    DEMONSTRATE = "demonstrate"


@dataclass(frozen=True)
class Check:
    """A predicate over what a step brought about: the lab (ensure) or what its act returned (demonstrate).

    `name` is "subject.claim", as scripts see it; `description` the claim in words; `hint` what to type or look
    at when it does not hold. Patience is the caller's: a check looks once.
    """

    name: str
    description: str
    look: Callable[[Any], Finding]
    hint: str = ""

    def over(self, subject: object) -> Finding:
        """Look once."""
        return self.look(subject)


@dataclass(frozen=True)
class Step:
    """One numbered step of the walkthrough.

    `act` does it. The checks in `verify` look at the lab (ensure) or at what `act` gave (demonstrate). An ensure
    step may also have `observe`, which sends requests once `verify` holds, and `witness`, the checks that look at
    what it gave. `always` has an ensure step act although its checks hold. `commands` lists what a person would
    type for the step, complete from a root shell on the host; `needs` names capabilities of the lab without which
    it is skipped; `undo` takes back what an ensure step brought about. `title` and `narration` come from the
    module's docstring.
    """

    number: int
    kind: Kind
    act: Callable[[Lab], Any]
    verify: tuple[Check, ...]
    commands: Callable[[Lab], Sequence[str]]
    observe: Callable[[Lab], Any] | None = None
    witness: tuple[Check, ...] = ()
    always: bool = False
    needs: frozenset[str] = field(default_factory=frozenset)
    undo: Callable[[Lab], None] | None = None
    title: str = ""
    narration: str = ""
