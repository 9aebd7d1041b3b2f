"""What a check hands over besides its verdict: numbers and raw text, each with its source."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(str, Enum):
    """How a check, a step or a run came out; the words scripts see."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    SKIP = "skip"
    ERROR = "error"


@dataclass(frozen=True)
class Reading:
    """One quantity read before and after something happened.

    `source` names where it was read: "bpf:sleep/outbound_redirected_bytes" (a kernel map),
    "iptables:sleep/nat/ISTIO_REDIRECT" or "nft:sleep/inet istio-proxy-nat/istio-redirect" (a rule),
    "envoy:helloworld-v1/access" (a log), "curl:sleep" (the client), "proc:sleep" (the process tree). A quantity
    that has no before (a log line found) leaves it None.
    """

    source: str
    unit: str
    before: int | str | None = None
    after: int | str | None = None
    raw: str | None = None

    @property
    def moved(self) -> int:
        """By how much the number grew; 0 where either side is not a number."""
        if isinstance(self.before, int) and isinstance(self.after, int):
            return self.after - self.before
        return 0


@dataclass(frozen=True)
class Control:
    """The experiment that shows a check could have seen the opposite."""

    name: str
    verdict: Verdict
    evidence: tuple[Reading, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What one look at the subject of a check gave.

    `why` is one sentence; where the check does not hold it names what is wrong and where.
    """

    verdict: Verdict
    why: str
    evidence: tuple[Reading, ...] = ()
    control: Control | None = None

    @property
    def held(self) -> bool:
        """Whether the claim was seen to be true."""
        return self.verdict is Verdict.PASS


def holds(why: str, *evidence: Reading, control: Control | None = None) -> Finding:
    """Build the finding of a check that held."""
    return Finding(Verdict.PASS, why, evidence, control)


def fails(why: str, *evidence: Reading, control: Control | None = None) -> Finding:
    """Build the finding of a check that did not hold; `why` names what and where."""
    return Finding(Verdict.FAIL, why, evidence, control)


def skips(why: str) -> Finding:
    """Build the finding of a check that could not look; never a pass."""
    return Finding(Verdict.SKIP, why)
