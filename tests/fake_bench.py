"""Bench pods in memory: what a benchmark sends is answered by a captured output, and counted as it should be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from merbridge_lab import signals
from merbridge_lab.bench import generators
from merbridge_lab.bench.model import Way
from merbridge_lab.bench.pod_sets import DIRECT_SLOT, Readings, SidecarCounts

CAPTURED = Path(__file__).parent / "captured" / "bench"
NOTHING = SidecarCounts(0, 0, 0)
COUNTED = ("outbound_connects", "mesh_redirected_messages")
PLACE = generators.Place("10.244.0.211", 5000, 9000, 9001, "/run/report.lua", "/run/unread.py", "/run/h2load.log")


class Pods:
    """A set in memory: each run serves the requests of the captured output, through both sidecars."""

    def __init__(self, sets, slot):
        self.sets, self.slot, self.place = sets, slot, PLACE
        meshed = slot != DIRECT_SLOT
        self.now = Readings(1.0, NOTHING if meshed else None, NOTHING if meshed else None, 0, {})
        self.ran = []
        self.skips = ""
        self.loads, self.beside = 0, (CAPTURED / "latency.txt").read_text()

    def run(self, argv, timeout):  # noqa: ARG002 - the protocol's
        self.ran.append(argv)
        self.sets.order.append((self.slot, self.sets.way(self.slot)))
        if self.sets.stop_after and len(self.sets.order) >= self.sets.stop_after:
            raise signals.Interrupted(2)
        opened = 1 + int(argv[argv.index("-c") + 1] if "-c" in argv else 1)  # one is the program's own, for a look
        served = SidecarCounts(141, 141, opened)
        added = dict(zip(COUNTED, (opened, 141), strict=True))
        by_rules = self.sets.way(self.slot) is Way.RULES
        if self.now.client is not None:
            self.now = replace(
                self.now,
                cpu_seconds=self.now.cpu_seconds + 0.25,
                client=_plus(self.now.client, served),
                server=self.now.server if self.skips == "server" else _plus(self.now.server, served),
                redirected=self.now.redirected + (opened if by_rules else 0),
                ebpf={} if by_rules else {name: self.read().ebpf[name] + more for name, more in added.items()},
            )
        return (CAPTURED / "latency.txt").read_text()

    def start(self, argv):
        self.ran.append(argv)
        self.loads += 1

    def settle(self):
        self.loads -= 1
        return self.beside

    def read(self):
        way = self.sets.way(self.slot)
        if way is Way.EBPF and not self.now.ebpf:
            return replace(self.now, ebpf=dict.fromkeys(COUNTED, 0))
        return replace(self.now, ebpf=self.now.ebpf if way is Way.EBPF else {})


class Sets:
    removal = 2.0

    def __init__(self, *, direct=False, stop_after=0):
        self.machine = {"lab": "memory"}
        self.order, self.stop_after, self.enrolled = [], stop_after, None
        self.sets = {slot: Pods(self, slot) for slot in ("A", "B", *([DIRECT_SLOT] if direct else []))}

    def enrol(self, slot):
        self.enrolled = slot
        for each in self.sets.values():
            each.now = replace(each.now, ebpf={})

    def used(self):
        return 0.0

    def way(self, slot):
        if slot == DIRECT_SLOT:
            return Way.DIRECT
        return Way.EBPF if slot == self.enrolled else Way.RULES


def _plus(one, other):
    return SidecarCounts(
        *(getattr(one, name) + getattr(other, name) for name in ("requests", "answered", "connections"))
    )
