"""The rules of a pod: how they are read, saved, flushed and loaded in a network namespace of this machine.

When this happens, and when it must not, is in flush_policy. The save is a file on disk: see saved_rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab.adapters import iptables
from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.command import pasteable, run
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import value_of
from merbridge_lab.labs.embedded import saved_rules
from merbridge_lab.labs.embedded.saved_rules import Save, SaveFile
from merbridge_lab.labs.flush_policy import Copy, FlushPolicy, Restored
from merbridge_lab.text import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from merbridge_lab.ruleset import RuleSet


@dataclass(frozen=True)
class _Transport:
    """The Transport protocol of flush_policy over the namespace that is pinned at `netns`, and a file beside it."""

    name: str
    netns: Path
    file: SaveFile
    covers: Callable[[], Sequence[str]]
    up_command: str = "merlab up"

    @property
    def saved_in(self) -> str:
        """The file."""
        return str(self.file.path)

    def covered(self) -> str:
        """Describe the first of the lab's places that is not what merlab put there."""
        return next(iter(self.covers()), "")

    def look(self) -> RuleSet:
        """Read the rules in every backend."""
        return iptables.snapshot(self.netns)

    def prepare(self, before: RuleSet) -> Copy[Save, Path]:
        """Return what will be saved. Raise LabError for rules that would not come back as they are."""
        cookie = saved_rules.cookie(self.netns) or 0
        save = Save(before.backend, cookie, self.whole(before, before.backend))
        return Copy(save, self.netns, lambda: self._present(before.backend))

    def whole(self, seen: RuleSet, backend: str) -> str:
        """Return the text of nat that agreed with the kernel, to be restored as it is. Raises LabError, UnreadError."""
        text = seen.text(backend, "nat")
        odd = next((rule for rule in seen.in_part if rule.table == "nat"), None)
        if odd is not None:
            raise LabError(
                f"{self.name} has a rule that merlab cannot compare with the kernel's, so nothing is flushed: {odd}",
                hint=self._list(backend, odd.chain),
                id="rules.unsupported",
            )
        if "\ufffd" in text:
            line = next(line for line in lines_of(text) if "\ufffd" in line)
            raise LabError(
                f"{self.name} has a rule with bytes that are not UTF-8, which could not be restored unchanged,"
                f" so nothing is flushed: {line}",
                hint=self._list(backend),
                id="rules.unsupported",
            )
        return text

    def _list(self, backend: str, chain: str = "") -> str:
        return pasteable(iptables.list_argv(self.netns, backend, "nat", chain))

    def save_and_flush(self, before: RuleSet, copy: Copy[Save, Path] | None) -> None:
        """Write the file, complete and on disk, and flush. Raises LabError."""
        self.file.write((copy or self.prepare(before)).save)
        iptables.flush(self.netns, before.backend, "nat")

    def read(self) -> Save | None:
        """Return what is in the file."""
        return self.file.read()

    def place(self, save: Save) -> Path | None:
        """Return the namespace if it is the one that the save is of."""
        return self.netns if save.cookie == saved_rules.cookie(self.netns) else None

    def load(self, save: Save, place: Path) -> str:
        """Load saved rules, and return the text of nat as it is then."""
        iptables.load(place, save.rules, save.backend)
        return self._present(save.backend)

    def _present(self, backend: str) -> str:
        return value_of(self.look().texts[backend])

    def text(self, save: Save) -> str:
        """Return the text that was saved."""
        return save.rules

    def load_command(self, save: Save, place: Path) -> str:
        """Return the command that a person would type to load the file."""
        return iptables.restore_line(place, save.backend, self.file.path)

    def delete(self) -> None:
        """Delete the file."""
        self.file.delete()


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
        self._save = SaveFile(folder, name)
        self._transport = _Transport(name, namespace, self._save, covers)
        self._policy: FlushPolicy[Save, Path] = FlushPolicy(self._transport, keep=keep)
        #: What a flush removed; it exists exactly as long as the flush is outstanding.
        self.saved_at = self._save.path
        #: A copy for a person to look at.
        self.copied_at = folder.parent / f"{name}.rules"

    def snapshot(self) -> RuleSet:
        """Read the rules in every backend."""
        return self._transport.look()

    def copy(self) -> None:
        """Save the rules, for a person to look at and to restore; if they are flushed, as they were before.

        A copy of a flushed table would be worse than none: the restore command that we show reads it. Raise LabError if
        it cannot be written.
        """
        saved = self._save.read()
        rules = saved.rules if saved else self._transport.whole(self.snapshot(), self._backend)
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

    def flushed(self) -> AbstractContextManager[RuleSet]:
        """Flush nat for the duration of the block; see lab.Rules."""
        return self._policy.flushed()

    def restore(self) -> bool:
        """Restore what a flush removed, if one is outstanding; return whether the pod has its rules back by this.

        Raise LabError if the rules cannot be restored; they stay saved then.
        """
        return self._policy.restore() is Restored.BACK

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
