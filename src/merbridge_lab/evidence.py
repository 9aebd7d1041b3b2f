"""What a check returns besides its verdict: numbers and raw text, each with its source."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

from merbridge_lab.errors import ClaimFailedError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Verdict(str, Enum):
    """The outcome of a check, a step or a run, in the words that scripts see."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    SKIP = "skip"
    ERROR = "error"


#: The last part of the source of a reading that describes what a check leaves out on this machine.
NOT_COMPARED = "not_compared"


@dataclass(frozen=True)
class Reading:
    """One quantity, read before and after an event.

    `source` names where it was read: "bpf:sleep/outbound_redirected_bytes" (a kernel map),
    "iptables:sleep/nat/ISTIO_REDIRECT" or "nft:sleep/inet istio-proxy-nat/istio-redirect" (a rule),
    "envoy:helloworld-v1/access" (a log), "curl:sleep" (the client), "proc:sleep" (the process tree). A quantity without
    a value before (a log line found) has None there.
    """

    source: str
    unit: str
    before: int | str | None = None
    after: int | str | None = None
    raw: str | None = None

    @property
    def not_compared(self) -> str | None:
        """What a check leaves out on this machine, if this reading is about that."""
        return str(self.after) if self.source.rpartition(":")[2] == NOT_COMPARED else None

    @property
    def moved(self) -> int:
        """Return by how much the number grew; 0 if either side is not a number."""
        if isinstance(self.before, int) and isinstance(self.after, int):
            return self.after - self.before
        return 0


@dataclass(frozen=True)
class Unread:
    """A reading that could not be taken. It is the value where the real value would be.

    `source` names what should have been read, as in Reading. `why` names the obstacle: a missing tool, a missing
    permission, an answer that could not be parsed, a log that was cut. It never equals a value that was read.
    """

    source: str
    why: str

    def __str__(self) -> str:
        return f"{self.source} could not be read: {self.why}"


class UnreadError(ClaimFailedError):
    """The value of a reading that could not be taken was needed: the claim about it does not hold."""

    id = "reading.failed"

    def __init__(self, unread: Unread) -> None:
        super().__init__(str(unread))
        self.unread = unread


def value_of(reading: T | Unread) -> T:
    """Return the value that was read. Raise UnreadError if it could not be read."""
    if isinstance(reading, Unread):
        raise UnreadError(reading)
    return reading


def attempt(look: Callable[[], T]) -> T | Unread:
    """Return what `look` returns; Unread if it needs the value of a reading that could not be taken."""
    try:
        return look()
    except UnreadError as error:
        return error.unread


@dataclass(frozen=True)
class Control:
    """The experiment that shows that a check could have seen the opposite."""

    name: str
    verdict: Verdict
    evidence: tuple[Reading, ...] = ()


@dataclass(frozen=True)
class Finding:
    """The result of evaluating a check once.

    `why` is one sentence. If the check does not hold, it names what is wrong and where.
    """

    verdict: Verdict
    why: str
    evidence: tuple[Reading, ...] = ()
    control: Control | None = None

    @property
    def held(self) -> bool:
        """Report whether the claim was observed to be true."""
        return self.verdict is Verdict.PASS


def holds(why: str, *evidence: Reading, control: Control | None = None) -> Finding:
    """Build the finding of a check that held."""
    return Finding(Verdict.PASS, why, evidence, control)


def fails(why: str, *evidence: Reading, control: Control | None = None) -> Finding:
    """Build the finding of a check that did not hold; `why` names what is wrong and where."""
    return Finding(Verdict.FAIL, why, evidence, control)


def skips(why: str) -> Finding:
    """Build the finding of a check that could not be evaluated; it is never a pass."""
    return Finding(Verdict.SKIP, why)


def assess(look: Callable[..., Finding], *subjects: object, unread: Verdict = Verdict.FAIL) -> Finding:
    """Return the finding of `look` about `subjects`. Only this function decides that an unread value is not a pass.

    If `look` needs the value of a reading that could not be taken, the finding is `unread` (a failure or a skip), with
    the reason.
    """
    try:
        return look(*subjects)
    except UnreadError as error:
        evidence = (Reading(error.unread.source, "", None, None, f"not read: {error.unread.why}"),)
        return Finding(unread, str(error.unread), evidence)
