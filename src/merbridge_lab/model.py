"""Step and Check: the walkthrough as values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from merbridge_lab.evidence import Verdict, assess

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from merbridge_lab.evidence import Finding
    from merbridge_lab.lab import Lab


class Kind(str, Enum):
    """The kind of a step.

    ENSURE creates a state that lasts: its act is skipped if its checks already hold, and its undo runs at `down`.
    DEMONSTRATE always acts and always cleans up after itself.
    """

    ENSURE = "ensure"
    DEMONSTRATE = "demonstrate"


@dataclass(frozen=True)
class Check:
    """A predicate over the result of a step: the lab (ensure) or what its act returned (demonstrate).

    `name` is "subject.claim", as scripts see it. `description` is the claim in words. `hint` is what to type or look at
    if it does not hold. `unread` is the verdict if a reading that it needs could not be taken. The caller decides how
    often to retry: a check evaluates once.
    """

    name: str
    description: str
    look: Callable[[Any], Finding]
    hint: str = ""
    unread: Verdict = Verdict.FAIL

    def evaluate(self, subject: object) -> Finding:
        """Evaluate the check once."""
        return assess(self.look, subject, unread=self.unread)


@dataclass(frozen=True)
class Variant:
    """A replacement of parts of a step for labs that lack a capability; an omitted field is as in the step.

    `needs` are the capabilities that the step still needs.
    """

    act: Callable[[Lab], Any] | None = None
    verify: tuple[Check, ...] | None = None
    commands: Callable[[Lab], Sequence[str]] | None = None
    narration: str = ""
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Step:
    """One numbered step of the walkthrough.

    `act` performs the step. The checks in `verify` evaluate the lab (ensure) or what `act` returned (demonstrate). An
    ensure step may also have `observe`, which sends requests once `verify` holds, and `request_checks`, the
    checks of what `observe` returned. `always` makes an ensure step act although its checks hold. `commands` lists what
    a person would type for the step, complete from a root shell on the host. `needs` names capabilities; the step is
    skipped in a lab without them. `variants` say what it does instead if one is missing. `undo` takes back what an
    ensure step created. `headline` is the check whose finding stands for the step in a brief report; by default the
    last one. `title` and `narration` come from the module's docstring.
    """

    number: int
    kind: Kind
    act: Callable[[Lab], Any]
    verify: tuple[Check, ...]
    commands: Callable[[Lab], Sequence[str]]
    observe: Callable[[Lab], Any] | None = None
    request_checks: tuple[Check, ...] = ()
    always: bool = False
    needs: frozenset[str] = field(default_factory=frozenset)
    variants: Mapping[str, Variant] = field(default_factory=dict)
    undo: Callable[[Lab], None] | None = None
    headline: str = ""
    title: str = ""
    narration: str = ""

    def on(self, capabilities: Collection[str]) -> Step:
        """Return the step as it is in a lab with these capabilities."""
        for capability, variant in self.variants.items():
            if capability not in capabilities:
                return replace(
                    self,
                    act=variant.act or self.act,
                    verify=self.verify if variant.verify is None else variant.verify,
                    commands=variant.commands or self.commands,
                    narration=variant.narration or self.narration,
                    needs=variant.needs,
                )
        return self
