"""The measurement itself: interleaved rounds, in which two equal sets of pods swap the ways that they go.

In each round, the rules are first measured against themselves. Then one set is served by eBPF, and each row is measured
by both ways, one right after the other; which set and which way comes first changes from round to round.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from merbridge_lab import signals
from merbridge_lab.adapters import cpu
from merbridge_lab.bench import generators, validity
from merbridge_lab.bench.model import NOISE_ROW, BenchResult, RowResult, Sample, Way
from merbridge_lab.bench.pod_sets import DIRECT_SLOT, SLOTS
from merbridge_lab.bench.scenarios import Figure, Load
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from merbridge_lab.bench.generators import Loaded
    from merbridge_lab.bench.pod_sets import PodSets, Readings
    from merbridge_lab.bench.scenarios import Scenario

    #: The readings before and after a load, by slot.
    _Around = dict[str, tuple[Readings, Readings]]

T = TypeVar("T")

#: After so many rounds, each set has gone each way, and each way was the first, equally often.
_BALANCED = 2 * len(SLOTS)

#: A generator that has not ended so long (seconds) after its time is up has failed.
_LATE = 20.0
#: How often a sample is taken whose generator missed its end.
_TRIES = 3
#: How long a transfer in the background runs longer than the sample beside it, in seconds, half of it before.
_AROUND = 0.4


class Extent(NamedTuple):
    """How long a benchmark takes: `budget` from the start of the command, and one `sample` and its `warm_up`, in s.

    A row that is a median has a p99 beside it, which needs more requests: its samples take at least `of_median`.
    """

    budget: float
    sample: float
    warm_up: float
    of_median: float = 0.0

    def seconds(self, scenario: Scenario) -> float:
        """Return how long a sample of a row takes."""
        least = self.of_median if scenario.figure is Figure.P50 else 0.0
        return max(self.sample * scenario.times, least)


QUICK, USUAL, FULL = Extent(30, 0.2, 0.1), Extent(120, 0.5, 0.1), Extent(900, 0.8, 0.2, 2.0)


@dataclass(frozen=True)
class Plan:
    """What is measured; `direct` adds the way without sidecars.

    Without `rounds`, as many as fit into the budget, a multiple of four: so each set goes each way equally often, and
    each way is as often the first.
    """

    scenarios: Sequence[Scenario]
    extent: Extent
    rounds: int | None = None
    direct: bool = False


@dataclass
class _Row:
    scenario: Scenario
    name: str
    title: str
    samples: list[Sample] = field(default_factory=list)
    invalid: str | None = None

    def result(self, rounds: int) -> RowResult:
        """Return what the first `rounds` rounds measured."""
        scenario = self.scenario
        samples = tuple(each for each in self.samples if each.round <= rounds)
        return RowResult(self.name, self.title, scenario.unit, scenario.higher_is_better, samples, self.invalid)


class Measurement:
    """One benchmark over `pods`; `began` is when the command began (time.monotonic), `tell` shows what is done."""

    def __init__(self, pods: PodSets, plan: Plan, *, began: float, tell: Callable[[str], None]) -> None:
        self._pods, self._plan, self._began, self._tell = pods, plan, began, tell
        first = plan.scenarios[0]
        self._noise = _Row(first, NOISE_ROW, f"the rules against themselves: {first.title}")
        self._rows = [_Row(scenario, scenario.name, scenario.title) for scenario in plan.scenarios]
        self._outside, self._elapsed = 0.0, 0.0
        self._spans: list[float] = []
        #: The signal that ended it early, if one did.
        self.signum: int | None = None

    def run(self) -> None:
        """Measure all rounds; a signal ends it early, and the complete rounds are kept. Raises LabError."""
        try:
            while self._goes_on():
                began = time.monotonic()
                self._round(len(self._spans))
                self._spans.append(time.monotonic() - began)
        except signals.Interrupted as stop:
            self.signum = stop.signum

    def result(self, machine: Mapping[str, str]) -> BenchResult:
        """Return what was measured, with what `machine` adds to what the lab knows."""
        return BenchResult(
            rows=tuple(row.result(len(self._spans)) for row in (*self._rows, self._noise)),
            rounds=len(self._spans),
            machine={**self._pods.machine, **machine},
            outside_load=min(1.0, max(0.0, self._outside / self._elapsed)) if self._elapsed else 0.0,
            interrupted=self.signum is not None,
            seconds=time.monotonic() - self._began,
        )

    # -- rounds -------------------------------------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        done = len(self._spans)
        if self._plan.rounds is not None:
            return done < self._plan.rounds
        if not done or done % _BALANCED:
            return True
        left = self._plan.extent.budget - (time.monotonic() - self._began)
        return _BALANCED * max(self._spans) + self._pods.removal <= left

    def _left(self) -> str:
        if not self._spans:
            return ""
        if self._plan.rounds is None:
            left = self._plan.extent.budget - (time.monotonic() - self._began)
        else:
            left = (self._plan.rounds - len(self._spans)) * statistics.median(self._spans)
        return f", at most {max(1, round(left))} s left"

    def _round(self, number: int) -> None:
        enrolled = SLOTS[number % 2]
        other = SLOTS[1 - number % 2]
        backwards = bool(number // 2 % 2)
        self._pods.enrol(None)
        for slot in _turned(SLOTS, backwards):
            self._measure(self._noise, number, slot)
        self._pods.enrol(enrolled)
        direct = (DIRECT_SLOT,) if self._plan.direct else ()
        for row in _turned(self._rows, backwards):
            for slot in _turned((other, enrolled, *direct), backwards):
                self._measure(row, number, slot)

    def _measure(self, row: _Row, number: int, slot: str) -> None:
        """Take one sample; a row that has become invalid is not measured any more."""
        if row.invalid is not None:
            return
        way = self._pods.way(slot)
        self._tell(f"round {number + 1}{self._left()}: {row.name}, {_NAMES[way]}")
        try:
            loaded, beside, around = self._load(row.scenario, slot)
            why = validity.why_invalid(way, loaded, *around[slot])
            if beside is not None:
                why = why or validity.why_alone(beside)
            if way is Way.DIRECT:
                why = why or validity.bypassed([pair for each, pair in around.items() if each != slot])
            value = loaded.value(row.scenario.figure)
        except LabError as error:
            why = error.what
        except (KeyError, ZeroDivisionError):
            why = "the generator measured nothing"
        if why:
            row.invalid = f"round {number + 1}, {_NAMES[way]}: {why}"
        else:
            row.samples.append(_sample(row.scenario, way, number, slot, value, loaded, around[slot]))

    def _load(self, scenario: Scenario, slot: str) -> tuple[Loaded, Loaded | None, _Around]:
        """Put the load on a set, again if the generator missed its end. Raise LabError if it always does.

        The second is what a transfer in the background reports, if there is one.
        """
        for _ in range(_TRIES):
            text, beside, around = self._load_once(scenario, slot)
            if generators.missed_its_end(scenario, text, self._plan.extent.seconds(scenario)):
                continue
            if beside is None:
                return generators.parse(scenario, text), None, around
            if beside.strip():  # else it missed its end
                return generators.parse(scenario, text), generators.parse(scenario, beside), around
        raise LabError(
            "the generator cannot be ended in time: the machine is too busy",
            hint="measure again with nothing else running",
            id="tool.failed",
        )

    def _load_once(self, scenario: Scenario, slot: str) -> tuple[str, str | None, _Around]:
        """Put the load on a set; return what it and the transfer beside it report, and the readings around it."""
        pods, warm_up = self._pods.sets[slot], self._plan.extent.warm_up
        seconds = self._plan.extent.seconds(scenario)
        looked_at = {slot: pods, **({each: self._pods.sets[each] for each in SLOTS} if slot == DIRECT_SLOT else {})}
        if scenario.load in generators.WRKS:
            pods.run(generators.argv(scenario, pods.place, warm_up), warm_up + _LATE)
        if has_beside := scenario.load is Load.WRK_BESIDE:
            pods.start(generators.transfer_argv(pods.place, seconds + _AROUND))
        try:
            before = {name: each.read() for name, each in looked_at.items()}
            with self._watched():
                text = pods.run(generators.argv(scenario, pods.place, seconds), seconds + _LATE)
            around = {name: (before[name], each.read()) for name, each in looked_at.items()}
        except LabError:
            if has_beside:  # else it would run beside the next load
                pods.settle()
            raise
        return text, pods.settle() if has_beside else None, around

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Measure what others use of the processors during the block."""
        began, before = time.monotonic(), self._used_by_others()
        yield
        self._outside += self._used_by_others() - before
        self._elapsed += (time.monotonic() - began) * cpu.cores()

    def _used_by_others(self) -> float:
        try:
            return cpu.busy_seconds() - cpu.own_seconds() - self._pods.used()
        except OSError as error:
            what = f"how busy the machine is could not be read: {error.strerror}"
            raise LabError(what, hint="cat /proc/stat", id="reading.failed") from error


_NAMES = {Way.DIRECT: "without sidecars", Way.RULES: "by the rules", Way.EBPF: "by eBPF"}


def _turned(items: Sequence[T], backwards: bool) -> Sequence[T]:
    return items[::-1] if backwards else items


def _sample(
    scenario: Scenario,
    way: Way,
    number: int,
    slot: str,
    value: float,
    loaded: Loaded,
    around: tuple[Readings, Readings],
) -> Sample:
    before, after = around
    return Sample(
        way=way,
        round=number + 1,
        slot=slot,
        value=value,
        unit=scenario.unit,
        higher_is_better=scenario.higher_is_better,
        # That of the transfer in the background is no request's.
        cpu_seconds=None if scenario.load is Load.WRK_BESIDE else after.cpu_seconds - before.cpu_seconds,
        requests=loaded.requests or None,
        extra={name: loaded.times[name] for name in ("p90", "p99", "p99.9") if name in loaded.times},
    )
