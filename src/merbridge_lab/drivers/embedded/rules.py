"""The rules of a pod: read, flushed and put back without ever being lost.

What is flushed is on disk before; the file that holds it *is* the mark that a flush is outstanding, and goes only
when the rules are seen to be back. A save is never overwritten while its flush is outstanding.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab import interrupts, ruleset
from merbridge_lab.adapters import iptables, netns
from merbridge_lab.adapters.proc import pasteable, run
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from merbridge_lab.ruleset import RuleSet

_HEADER = "# merlab: nat of"


@dataclass(frozen=True)
class _Saved:
    backend: str
    cookie: int
    text: str


class PodRules:
    """The nat rules in the network namespace of the pod `name`; `keep` leaves them flushed after a flush."""

    def __init__(self, name: str, namespace: Path, folder: Path, *, backend: str, keep: bool = False) -> None:
        self._name = name
        self._netns = namespace
        self._backend = backend
        self._keep = keep
        #: What a flush took; there exactly as long as the flush is outstanding.
        self.saved_at = folder / f"{name}.rules"
        #: A copy for a person to look at.
        self.copied_at = folder.parent / f"{name}.rules"

    def snapshot(self) -> RuleSet:
        """Read them, in every backend."""
        return iptables.snapshot(self._netns)

    def copy(self) -> None:
        """Save the rules, for a person to look at and to put back; while they are flushed, as they were.

        A copy of a flushed table would be worse than none: the command that we show for putting it back reads it.
        Raises LabError when it cannot be written.
        """
        saved = self._read()
        try:
            self.copied_at.write_text(saved.text if saved else iptables.save(self._netns, self._backend, "nat"))
        except OSError as error:
            raise LabError(
                f"the rules of {self._name} cannot be copied to {self.copied_at}: {error.strerror}",
                hint=f"df {self.copied_at.parent}",
            ) from error

    @property
    def outstanding(self) -> bool:
        """Whether rules are flushed and saved right now."""
        return self.saved_at.exists()

    @contextlib.contextmanager
    def flushed(self) -> Iterator[RuleSet]:
        """Flush nat for the length of the block; see lab.Rules."""
        self.restore()
        before = self.snapshot()
        if not before.backend:
            raise LabError(f"there are no ISTIO rules in {self._name} to flush", hint="merlab up")
        self._save(before.backend)
        try:
            iptables.flush(self._netns, before.backend, "nat")
            yield before
        except BaseException:
            self.restore()
            raise
        if not self._keep:
            self.restore()

    def restore(self) -> bool:
        """Put back what a flush took, if one is outstanding, and say whether one was.

        Raises LabError when the rules cannot be put back; they stay saved then.
        """
        with interrupts.shielded():
            saved = self._read()
            if saved is None:
                return False
            if saved.cookie == netns.cookie(self._netns):
                iptables.load(self._netns, saved.text, saved.backend)
                wanted = [str(rule) for rule in ruleset.parse(saved.text)]
                present = ruleset.parse(iptables.save(self._netns, saved.backend, "nat"))
                if [str(rule) for rule in present] != wanted:
                    raise LabError(
                        f"the nat rules of {self._name} are not what was saved in {self.saved_at}",
                        hint=iptables.restore_line(self._netns, saved.backend, self.saved_at),
                    )
            # Else the pod was made anew meanwhile, with rules of its own: these belong to a namespace that is gone.
            self.saved_at.unlink()
            return True

    def forget(self) -> None:
        """Delete what was saved: the pod is gone, and its rules with it."""
        self.saved_at.unlink(missing_ok=True)
        self.copied_at.unlink(missing_ok=True)

    def _save(self, backend: str) -> None:
        text = iptables.save(self._netns, backend, "nat")
        header = f"{_HEADER} {self._name}, backend={backend} netns={netns.cookie(self._netns)}\n"
        draft = self.saved_at.with_suffix(".new")
        try:
            with draft.open("w") as file:
                file.write(header + text)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self.saved_at)
            folder = os.open(self.saved_at.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise LabError(
                f"the rules of {self._name} cannot be saved to {self.saved_at}: {error.strerror}",
                hint=f"df {self.saved_at.parent}",
            ) from error

    def _read(self) -> _Saved | None:
        try:
            text = self.saved_at.read_text()
        except FileNotFoundError:
            return None
        facts = dict(word.split("=", 1) for word in text.partition("\n")[0].split() if "=" in word)
        known = facts.get("backend") in ruleset.BACKENDS and facts.get("netns", "").isdigit()
        if not (text.startswith(_HEADER) and known):
            raise LabError(
                f"{self.saved_at} is not a file of rules that merlab saved",
                hint=f"mv {self.saved_at} {self.saved_at}.other",
            )
        return _Saved(facts["backend"], int(facts["netns"]), text)

    # -- as a person would type it ----------------------------------------------------------------------------------

    def save_command(self) -> str:
        """Give the command that saves the rules with their counters."""
        return f"{pasteable(iptables.save_argv(self._netns, self._backend, 'nat'))} > {self.copied_at}"

    def flush_command(self) -> str:
        """Give the command that flushes nat."""
        return pasteable(iptables.flush_argv(self._netns, self._backend, "nat"))

    def restore_command(self) -> str:
        """Give the command that puts the saved rules back."""
        return iptables.restore_line(self._netns, self._backend, self.copied_at)

    def list_command(self, chain: str = "") -> str:
        """Give the command that lists the nat rules, or those of one chain, with their counters."""
        return pasteable(iptables.list_argv(self._netns, self._backend, "nat", chain))

    def listing(self, chain: str = "") -> str:
        """Give what `list_command` prints now."""
        return run(iptables.list_argv(self._netns, self._backend, "nat", chain)).stdout
