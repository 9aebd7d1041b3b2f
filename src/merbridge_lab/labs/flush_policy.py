"""Flush the rules of a pod and restore them without ever losing them, wherever the pod is.

Flushed rules are saved before the flush. The save *is* the mark that a flush is outstanding, and is deleted only after
the rules were seen to be back. A save is never overwritten, and its rules never go to another namespace than the one
that they are of. A lab brings the transport: where saves are kept, and how rules are read and loaded there.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from merbridge_lab import ruleset, signals
from merbridge_lab.errors import ClaimFailedError, LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from merbridge_lab.ruleset import RuleSet

#: What was saved, from where, as the lab keeps it; and the namespace that it is of, while that exists.
SaveT = TypeVar("SaveT")
PlaceT = TypeVar("PlaceT")


class SpoiltSaveError(LabError):
    """What should hold the saved rules of a pod does not hold what merlab saved."""


class Restored(Enum):
    """The outcome of a restore: nothing was saved, or it is back, or its namespace was gone, and the rules with it."""

    NOTHING = "nothing"
    BACK = "back"
    GONE = "gone"


@dataclass(frozen=True)
class Copy(Generic[SaveT, PlaceT]):
    """What a flush is about to save, kept in memory as well, whatever happens to the save meanwhile.

    `present` returns the text of nat as it is now, in the backend that the save is of.
    """

    save: SaveT
    place: PlaceT
    present: Callable[[], str]


class Transport(Protocol[SaveT, PlaceT]):
    """How a lab reads, saves, flushes and loads the nat rules of one pod. Everything raises LabError."""

    @property
    def name(self) -> str:
        """The name of the pod."""

    @property
    def saved_in(self) -> str:
        """Where the save is, in words for a person."""

    @property
    def up_command(self) -> str:
        """The command that creates what is missing in the lab."""

    def covered(self) -> str:
        """Describe what hides the lab's own places; "" if nothing does. Then no rule is changed."""

    def look(self) -> RuleSet:
        """Read the rules in every backend, of the pod as it is now."""

    def prepare(self, before: RuleSet) -> Copy[SaveT, PlaceT] | None:
        """Return what will be saved of these rules; None if it is read only where it is saved.

        Raise LabError for rules that would not come back as they are.
        """

    def save_and_flush(self, before: RuleSet, copy: Copy[SaveT, PlaceT] | None) -> None:
        """Save, and flush only after the save is on disk. Never overwrite the save of another flush."""

    def read(self) -> SaveT | None:
        """Return what is saved; None if nothing is. Raise SpoiltSaveError for what merlab did not save."""

    def place(self, save: SaveT) -> PlaceT | None:
        """Return the namespace that a save is of; None if it is gone."""

    def load(self, save: SaveT, place: PlaceT) -> str:
        """Load saved rules, and return the text of nat as it is then."""

    def text(self, save: SaveT) -> str:
        """Return the text of nat that was saved."""

    def load_command(self, save: SaveT, place: PlaceT) -> str:
        """Return the command that a person would type to load the save."""

    def delete(self) -> None:
        """Delete the save; succeed if it is missing."""


class FlushPolicy(Generic[SaveT, PlaceT]):
    """The flush of one pod's rules; `keep` leaves them flushed after a flush."""

    def __init__(self, transport: Transport[SaveT, PlaceT], *, keep: bool) -> None:
        self._transport, self._keep = transport, keep

    @contextlib.contextmanager
    def flushed(self) -> Iterator[RuleSet]:
        """Flush nat for the duration of the block; yield the rules from before. See lab.Rules."""
        transport = self._transport
        if covered := transport.covered():
            raise ClaimFailedError(covered)
        self.restore()
        before = transport.look()
        if not before.backend:
            raise LabError(
                f"there are no ISTIO rules in {transport.name} to flush", hint=transport.up_command, id="rules.altered"
            )
        copy = transport.prepare(before)
        try:
            transport.save_and_flush(before, copy)
            yield before
        except BaseException:
            with contextlib.suppress(ClaimFailedError):  # the error that ended the block is reported
                self._end(copy)
            raise
        if not self._keep:
            self._end(copy)

    def _end(self, copy: Copy[SaveT, PlaceT] | None) -> None:
        """Restore what this flush removed; if the rules are still in memory, whatever happened to the save.

        Raise ClaimFailedError if the save was changed or deleted meanwhile; the rules are back then.
        """
        if copy is None:
            self.restore()
            return
        transport = self._transport
        with signals.shielded():
            try:
                found = transport.read()
                if found is None and self._are_back(copy.save, copy.present()):
                    return  # restored inside the block
            except SpoiltSaveError:
                found = None
            self._put_back(copy.save, copy.place)
            with contextlib.suppress(IsADirectoryError):
                transport.delete()
        if found != copy.save:
            raise ClaimFailedError(f"{transport.saved_in} was changed while the rules of {transport.name} were flushed")

    def restore(self) -> Restored:
        """Restore what a flush removed, if one is outstanding.

        Raise LabError if the rules cannot be restored; they stay saved then.
        """
        transport = self._transport
        with signals.shielded():
            self._require_own()
            save = transport.read()
            if save is None:
                return Restored.NOTHING
            place = transport.place(save)
            if place is not None:
                self._put_back(save, place)
            # Otherwise the pod is gone, or was recreated with new rules: these belong to a namespace that is gone.
            transport.delete()
            return Restored.GONE if place is None else Restored.BACK

    def _require_own(self) -> None:
        """Raise LabError if rules would go to another namespace than the pod's, or their save would be lost."""
        if covered := self._transport.covered():
            raise LabError(
                f"{covered}; no rules of {self._transport.name} are put back",
                hint=self._transport.up_command,
                id="rules.not_restored",
            )

    def _put_back(self, save: SaveT, place: PlaceT) -> None:
        self._require_own()
        transport = self._transport
        if not self._are_back(save, transport.load(save, place)):
            raise LabError(
                f"the nat rules of {transport.name} are not what was saved in {transport.saved_in}",
                hint=transport.load_command(save, place),
                id="rules.not_restored",
            )

    def _are_back(self, save: SaveT, present: str) -> bool:
        return _nat(present) == _nat(self._transport.text(save))


def _nat(text: str) -> Sequence[str]:
    return [str(rule) for rule in ruleset.parse(text) if rule.table == "nat"]
