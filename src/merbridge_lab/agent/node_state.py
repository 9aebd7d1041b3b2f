"""What the agent keeps of a node in files: its lock, its generation, the kill switch, its state for `agent status`.

Only one agent of a node changes the dataplane: it holds a lock, which the kernel releases when it ends, however it
ends. The generation is recorded, and an agent of a lower one refuses to start; within a generation, a version that was
replaced does not come back. So two versions that are both installed never replace each other in turns.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters.change import change
from merbridge_lab.adapters.files import delete, make_folder, write_atomic
from merbridge_lab.errors import LabError
from merbridge_lab.text import as_json

if TYPE_CHECKING:
    from pathlib import Path

#: How much of a version number is one part of a generation.
_PART = 1000


@dataclass(frozen=True)
class Recorded:
    """The generation that was last in charge of the node, the version of its programs, and those that it replaced."""

    generation: int
    stamp: str
    replaced: tuple[str, ...] = ()


def default_generation(version: str) -> int:
    """Return the generation of a version: later versions have higher ones."""
    numbers = [int(part) for part in version.split(".")[:3] if part.isdecimal()]
    return sum(number * _PART ** (2 - at) for at, number in enumerate(numbers))


class NodeState:
    """The files below two directories of the node: `run` is lost when it restarts, `kept` is not.

    A node that was switched off stays off when it restarts, and its generation counts then, too.
    """

    def __init__(self, run: Path, kept: Path) -> None:
        self._run, self._kept = run, kept
        self._lock = run / "lock"
        self._state = run / "state.json"
        self._generation = kept / "generation"
        self._off = kept / "redirect-off"

    # -- lock and generation ------------------------------------------------------------------------------------------

    def take(self) -> int | None:
        """Take the lock until this process ends, and return its descriptor; None if another agent has it.

        Raises LabError.
        """
        while True:
            descriptor = self._open_lock()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            if self._is_lock(descriptor):
                return descriptor
            os.close(descriptor)  # its holder has removed the file since: another agent may lock a new one

    def _open_lock(self) -> int:
        try:
            make_folder(self._run, mode=0o700, parents=True)
            with change("take a lock"):
                return os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise LabError(
                f"the agent's lock {self._lock} cannot be made: {error.strerror}",
                hint=f"ls -ld {self._run}",
                id="file.not_written",
            ) from error

    def _is_lock(self, descriptor: int) -> bool:
        """Report whether this open file is still the one that others will lock."""
        try:
            there = self._lock.lstat()
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(descriptor))

    @property
    def is_running(self) -> bool:
        """Report whether an agent holds the lock."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def recorded(self) -> Recorded | None:
        """Return the generation that was last in charge; None if none was since `forget`."""
        try:
            told = json.loads(self._generation.read_text())
            return Recorded(int(told["generation"]), str(told["stamp"]), tuple(map(str, told["replaced"])))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def require_not_older(self, generation: int, stamp: str) -> None:
        """Raise LabError if a newer generation has been in charge of the node, or a version that replaced this one."""
        last = self.recorded()
        if last is None or generation > last.generation:
            return
        if generation == last.generation and stamp not in last.replaced:
            return
        why = (
            f"this one is of generation {generation}"
            if generation < last.generation
            else f"it replaced this version, {stamp}"
        )
        raise LabError(
            f"a newer agent has been in charge of this node, of generation {last.generation} ({last.stamp}): {why}",
            hint=f"merlab agent run --generation {last.generation + 1}",
            id="agent.older",
        )

    def record(self, generation: int, stamp: str) -> None:
        """Record that this version is in charge now. Raises OSError."""
        last = self.recorded()
        replaced: tuple[str, ...] = ()
        if last is not None and last.generation == generation:
            replaced = last.replaced if last.stamp == stamp else (*last.replaced, last.stamp)
        told = {"generation": generation, "stamp": stamp, "replaced": replaced}
        make_folder(self._kept, mode=0o700, parents=True)
        write_atomic(self._generation, as_json(told), mode=0o600)

    # -- switches and state -------------------------------------------------------------------------------------------

    @property
    def is_redirecting(self) -> bool:
        """Report whether redirecting is wanted: the switch outlives the agent, its programs and the node's restart."""
        return not self._off.exists()

    @is_redirecting.setter
    def is_redirecting(self, on: bool) -> None:
        if on:
            delete(self._off)
        else:
            make_folder(self._kept, mode=0o700, parents=True)
            write_atomic(self._off, "", mode=0o600)

    def write(self, state: dict[str, Any]) -> None:
        """Write the state for `agent status`. Raises OSError."""
        write_atomic(self._state, as_json(state), mode=0o600)

    def begin(self) -> None:
        """Note that an agent starts: what the one before it wrote is not ready any more. Raises OSError."""
        if told := self.read():
            self.write({**told, "ready": False})

    def read(self) -> dict[str, Any]:
        """Return the state as the agent wrote it last; empty if there is none."""
        try:
            found = json.loads(self._state.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def forget(self) -> None:
        """Remove everything but the lock, which its holder has open. Raises OSError."""
        for path in (self._generation, self._state, self._off):
            delete(path)
        with contextlib.suppress(OSError):
            delete(self._lock)
