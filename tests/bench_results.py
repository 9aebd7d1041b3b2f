"""Results of benchmarks as they may come out: with ratios, noise and drift that a test chooses."""

from __future__ import annotations

import math
import random

from merbridge_lab.bench.model import NOISE_ROW, BenchResult, RowResult, Sample, Way

MACHINE = {
    "kernel": "6.18.44",
    "cpu": "Some CPU <with> & signs",
    "cores": "2",
    "merlab": "0.1.0",
    "wrk": "4.1.0",
    "legs": "all",
}
#: Of each row: title, unit, what the rules give, whether higher is better.
ROWS = {
    "latency": ("keep-alive, 1 connection, p50", "s", 0.000_512, False),
    "parallel": ("16 connections", "requests/s", 14_312.0, True),
    "connect": ("a new connection each, p50", "s", 0.001_91, False),
    "bodies": ("1 MB bodies", "requests/s", 812.0, True),
    NOISE_ROW: ("the rules against themselves", "s", 0.000_512, False),
}


def result(ratios=None, *, rounds=8, noise=0.02, seed=1, requests=5000, **changes):
    """Return a result in which eBPF is by `ratios[row]` away from the rules (1 where it is not named).

    `noise` is the standard deviation of the logarithm of each sample. All drift together by up to 30 % from first to
    last, in waves, with a round in ten in which something else takes time from one of both.
    """
    draw = random.Random(seed)  # noqa: S311 - no secret
    ratios = ratios or {}
    phase = draw.random()
    rows = []
    for name, (title, unit, base, higher) in ROWS.items():
        samples = []
        for number in range(1, rounds + 1):
            drift = 1 + 0.3 * math.sin(2 * math.pi * ((number - 1) / 7 + phase))
            for slot in "AB":
                candidate = slot != "AB"[number % 2]
                way = Way.EBPF if candidate and name != NOISE_ROW else Way.RULES
                hit = 1.1 if draw.random() < 0.05 else 1.0
                value = base * drift * hit * math.exp(draw.gauss(0, noise))
                value *= ratios.get(name, 1) if candidate else 1
                extra = {} if unit != "s" else {"p90": 1.5 * value, "p99": 3 * value, "p99.9": 9 * value}
                cpu = requests * 0.000_2 * math.exp(draw.gauss(0, noise))
                samples.append(Sample(way, number, slot, value, unit, higher, cpu, requests, extra))
            limit = base * (1.4 if higher else 0.6)
            samples.append(Sample(Way.DIRECT, number, "A", limit, unit, higher, None, requests))
        if name == NOISE_ROW:
            samples = [each for each in samples if each.way is Way.RULES]
        rows.append(RowResult(name, title, unit, higher, tuple(samples)))
    facts = {"machine": MACHINE, "outside_load": 0.01, "interrupted": False, "seconds": 112.4, **changes}
    return BenchResult(tuple(rows), rounds, **facts)
