"""The rules of a pod: read, flushed and restored without ever being lost.

Flushed rules are on disk before the flush. The file that holds them *is* the mark that a flush is outstanding, and is
deleted only after the rules were seen to be back. A save is never overwritten while its flush is outstanding.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from merbridge_lab import ruleset, signals
from merbridge_lab.adapters import iptables
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.command import pasteable, run
from merbridge_lab.errors import ClaimFailedError, LabError
from merbridge_lab.evidence import value_of
from merbridge_lab.labs.embedded import saved_rules
from merbridge_lab.labs.embedded.saved_rules import Save, SaveFile
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from merbridge_lab.ruleset import RuleSet


class PodRules:
    """The nat rules in the network namespace of the pod `name`; `keep` leaves them flushed after a flush.

    `covers` returns which of the lab's places are not what merlab put there: then no rule is changed.
    """

    def __init__(
        self,
        name: str,
        namespace: Path,
        folder: Path,
        *,
        backend: str,
        keep: bool = False,
        covers: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._name = name
        self._netns = namespace
        self._backend = backend
        self._keep = keep
        self._covers = covers
        self._save = SaveFile(folder, name)
        #: What a flush removed; it exists exactly as long as the flush is outstanding.
        self.saved_at = self._save.path
        #: A copy for a person to look at.
        self.copied_at = folder.parent / f"{name}.rules"

    def snapshot(self) -> RuleSet:
        """Read the rules in every backend."""
        return iptables.snapshot(self._netns)

    def copy(self) -> None:
        """Save the rules, for a person to look at and to restore; if they are flushed, as they were before.

        A copy of a flushed table would be worse than none: the restore command that we show reads it. Raise LabError if
        it cannot be written.
        """
        saved = self._save.read()
        rules = saved.rules if saved else self._whole(self.snapshot(), self._backend)
        try:
            with change("copy rules for a person"):
                self.copied_at.write_text(rules)
        except OSError as error:
            raise LabError(
                f"the rules of {self._name} cannot be copied to {self.copied_at}: {error.strerror}",
                hint=f"df {self.copied_at.parent}",
                id="rules.not_saved",
            ) from error

    @property
    def outstanding(self) -> bool:
        """Report whether rules are flushed and saved now: there is a good save of the namespace as it is now."""
        return self._save.is_of(self._netns)

    @contextlib.contextmanager
    def flushed(self) -> Iterator[RuleSet]:
        """Flush nat for the duration of the block; see lab.Rules."""
        if covers := self._covers():
            raise ClaimFailedError(covers[0])
        self.restore()
        before = self.snapshot()
        if not before.backend:
            raise LabError(f"there are no ISTIO rules in {self._name} to flush", hint="merlab up", id="rules.altered")
        rules = self._whole(before, before.backend)
        save = Save(before.backend, saved_rules.cookie(self._netns) or 0, rules)
        try:
            self._save.write(save)
            iptables.flush(self._netns, before.backend, "nat")
            yield before
        except BaseException:
            with contextlib.suppress(ClaimFailedError):  # the error that ended the block is reported
                self._end_flush(save)
            raise
        if not self._keep:
            self._end_flush(save)

    def _whole(self, seen: RuleSet, backend: str) -> str:
        """Return the text of nat that agreed with the kernel, to be restored as it is. Raises LabError, UnreadError."""
        text = seen.text(backend, "nat")
        odd = next((rule for rule in seen.in_part if rule.table == "nat"), None)
        if odd is not None:
            raise LabError(
                f"{self._name} has a rule that merlab cannot compare with the kernel's, so nothing is flushed: {odd}",
                hint=self.list_command(odd.chain),
                id="rules.unsupported",
            )
        if "\ufffd" in text:
            line = next(line for line in lines_of(text) if "\ufffd" in line)
            raise LabError(
                f"{self._name} has a rule with bytes that are not UTF-8, which could not be restored unchanged,"
                f" so nothing is flushed: {line}",
                hint=self.list_command(),
                id="rules.unsupported",
            )
        return text

    def _end_flush(self, save: Save) -> None:
        """Restore what this merlab flushed. The flushed rules are still in memory, whatever happened to the file.

        Raise ClaimFailedError if the file was changed or deleted meanwhile; the rules are back then.
        """
        with signals.shielded():
            try:
                found = self._save.read()
                if found is None and self._is_back(save):
                    return  # restored inside the block
            except saved_rules.SpoiltError:
                found = None
            self._put_back(save)
            with contextlib.suppress(IsADirectoryError):
                self._save.delete()
        if found != save:
            raise ClaimFailedError(f"{self.saved_at} was changed while the rules of {self._name} were flushed")

    def restore(self) -> bool:
        """Restore what a flush removed, if one is outstanding; return whether one was.

        Raise LabError if the rules cannot be restored; they stay saved then.
        """
        with signals.shielded():
            self._require_own()
            save = self._save.read()
            if save is None:
                return False
            is_ours = save.cookie == saved_rules.cookie(self._netns)
            if is_ours:
                self._put_back(save)
            # Otherwise the pod is gone, or was recreated with new rules: these belong to a namespace that is gone.
            self._save.delete()
            return is_ours

    def _require_own(self) -> None:
        """Raise LabError if rules would go to another namespace than the pod's, or their save would be lost."""
        if covers := self._covers():
            raise LabError(
                f"{covers[0]}; no rules of {self._name} are put back", hint="merlab up", id="rules.not_restored"
            )

    def _put_back(self, save: Save) -> None:
        self._require_own()
        iptables.load(self._netns, save.rules, save.backend)
        if not self._is_back(save):
            raise LabError(
                f"the nat rules of {self._name} are not what was saved in {self.saved_at}",
                hint=iptables.restore_line(self._netns, save.backend, self.saved_at),
                id="rules.not_restored",
            )

    def _is_back(self, save: Save) -> bool:
        wanted = [str(rule) for rule in ruleset.parse(save.rules)]
        seen = value_of(self.snapshot().texts[save.backend])
        return [str(rule) for rule in ruleset.parse(seen) if rule.table == "nat"] == wanted

    def forget(self) -> None:
        """Delete what was saved: the pod is gone, and its rules with it."""
        self._save.delete()
        with change("delete a copy of rules"):
            self.copied_at.unlink(missing_ok=True)

    # -- as a person would type it ----------------------------------------------------------------------------------

    def save_command(self) -> str:
        """Return the command that saves the rules with their counters."""
        return f"{pasteable(iptables.save_argv(self._netns, self._backend, 'nat'))} > {self.copied_at}"

    def flush_command(self) -> str:
        """Return the command that flushes nat."""
        return pasteable(iptables.flush_argv(self._netns, self._backend, "nat"))

    def restore_command(self) -> str:
        """Return the command that restores the saved rules."""
        return iptables.restore_line(self._netns, self._backend, self.copied_at)

    def list_command(self, chain: str = "") -> str:
        """Return the command that lists the nat rules, or those of one chain, with their counters."""
        return pasteable(iptables.list_argv(self._netns, self._backend, "nat", chain))

    def listing(self, chain: str = "") -> str:
        """Return what `list_command` prints now."""
        return run(iptables.list_argv(self._netns, self._backend, "nat", chain)).stdout
