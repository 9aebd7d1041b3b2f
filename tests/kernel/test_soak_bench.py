"""Of a hundred benchmarks of the rules against themselves, at most five may claim a difference."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
from walkthrough_host import environment, merlab

from merbridge_lab.bench.measuring import Extent, Measurement, Plan
from merbridge_lab.bench.model import NOISE_ROW, Way
from merbridge_lab.bench.pod_sets import SLOTS
from merbridge_lab.bench.scenarios import DEFAULT, QUICK, SCENARIOS
from merbridge_lab.bench.statistics import Claim, rounds_needed, summarize
from merbridge_lab.labs.embedded.managed_lab import ManagedEmbeddedLab

pytestmark = [pytest.mark.kernel, pytest.mark.soak]

NAME = "merlab-itself"
#: To try fewer: MERLAB_BENCHES=10 make soak ARGS="-k themselves"
MANY = int(os.environ.get("MERLAB_BENCHES", "100"))
#: A sample of 0.1 s is noisier than any that merlab bench takes: more than that is not claimed from less.
SHORT = Extent(budget=60, sample=0.1, warm_up=0.05)


class ByTheRules:
    """Bench pods that eBPF never serves, whichever set the benchmark asks it to serve."""

    def __init__(self, pods):
        self._pods = pods

    def enrol(self, _slot):
        self._pods.enrol(None)

    def __getattr__(self, name):
        return getattr(self._pods, name)


def as_if_by_ebpf(row):
    """Call what the set measured that was to be served by eBPF eBPF's, so that it is compared as such."""
    if row.name == NOISE_ROW:
        return row
    return replace(
        row,
        samples=tuple(
            replace(each, way=Way.EBPF if each.slot == SLOTS[(each.round - 1) % 2] else Way.RULES)
            for each in row.samples
        ),
    )


def bench(pods, rows):
    """Return what one benchmark says of the two sets."""
    scenarios = [each for each in SCENARIOS if each.name in rows]
    plan = Plan(scenarios, SHORT, rounds=rounds_needed(len(rows) + 1))
    measured = Measurement(ByTheRules(pods), plan, began=time.monotonic(), tell=lambda _: None)
    measured.run()
    assert measured.signum is None
    result = measured.result({})
    return summarize(replace(result, rows=tuple(map(as_if_by_ebpf, result.rows))))


@pytest.mark.parametrize("rows", [QUICK, DEFAULT], ids=["quick", "usual"])
def test_the_rules_against_themselves_claim_nothing(rows):
    env = environment(NAME)
    done = merlab("up", "--lab", "embedded", "--until", "3", "-q", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    found, uncounted, told_of = [], [], 0
    try:
        with ManagedEmbeddedLab(name=NAME).bench_pods(direct=False) as pods:
            for number in range(MANY):
                said = bench(pods, rows)
                for row in (*said.rows, said.noise):
                    told_of += 1
                    told = (number, row.row.name, row.comparison.why or row.comparison.corrected)
                    if row.comparison.claim is None:
                        uncounted.append(told)
                    elif row.comparison.claim is not Claim.NONE:
                        found.append(told)
    finally:
        assert merlab("down", env=env).returncode == 0
    assert len({number for number, *_ in found}) <= 0.05 * MANY, found
    # On a busy machine a generator may get no answer within its tenth of a second: such a row claims nothing.
    assert len(uncounted) <= 0.05 * told_of, uncounted
