"""What a benchmark measures, as values: the ways of a request, samples, rows and the whole result."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Way(enum.Enum):
    """How a request goes from app to app."""

    #: Without sidecars: the limit of what server and generator can do.
    DIRECT = "direct"
    RULES = "rules"
    EBPF = "ebpf"


@dataclass(frozen=True)
class Sample:
    """One measured figure of one row: `value`, in `unit`, of one set of pods ("A" or "B") in one round.

    `cpu_seconds` is what the pods of the set used meanwhile, `requests` how many were answered; None where it does not
    apply or could not be read. `extra` is what the generator reports besides: "p90", "p99" and "p99.9" in seconds.
    """

    way: Way
    round: int
    slot: str
    value: float
    unit: str
    higher_is_better: bool
    cpu_seconds: float | None = None
    requests: int | None = None
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RowResult:
    """All samples of one row; `invalid` is the reason why it does not count, None if it does."""

    name: str
    title: str
    unit: str
    higher_is_better: bool
    samples: tuple[Sample, ...]
    invalid: str | None = None


@dataclass(frozen=True)
class BenchResult:
    """What one `merlab bench` measured.

    `machine` names kernel, cpu, cores, merlab, the generators' versions and the legs' profile. `outside_load` is the
    share (0 to 1) of all cores that was used by others meanwhile; `seconds` is the duration of the whole.
    """

    rows: tuple[RowResult, ...]
    rounds: int
    machine: Mapping[str, str]
    outside_load: float
    interrupted: bool
    seconds: float


#: The row that measures the rules against themselves: what it claims means that the machine is too noisy.
NOISE_ROW = "rules-rules"
