"""What a pod costs, and what many pods or many open connections cost a request: `make scale`. Asserts nothing.

The lab is in this process, so that its parts can be measured one by one. What is compared is compared in pairs, one
right after the other, in turn first and second; the interval is that of `merlab bench`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from tests.scale_report import html

from merbridge_lab.adapters import cgroup, cpu, netns
from merbridge_lab.bench import generators, scenarios, validity
from merbridge_lab.bench.model import Way
from merbridge_lab.bench.statistics import Comparison, Pair, compare
from merbridge_lab.dataplane import garbage
from merbridge_lab.dataplane.pins import Pins
from merbridge_lab.labs.embedded import topology
from merbridge_lab.labs.embedded.discovery import endpoint_of
from merbridge_lab.labs.embedded.managed_lab import ManagedEmbeddedLab
from merbridge_lab.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from merbridge_lab.labs.embedded.bench_pods import BenchPodSet

NAME = os.environ.get("MERLAB_NAME", "merlab-scale")
#: Seconds of one sample of latency, and of the load before it that does not count.
SAMPLE, WARM_UP = 0.5, 0.1
#: How often a pod is attached and detached, for a median.
TIMES = 9
#: How many connections one pod holds: a process may have 20,000 files on some machines, and its sidecar has as many.
EACH = 2000
#: Opens connections, says so, and keeps them until its input ends.
HOLDER = """
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = [socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) for _ in range(int(sys.argv[3]))]
print("open", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Cost:
    """What the pods of a lab of `pods` cost beside their Envoys: each in ms or KB, of merlab's own, for one pod.

    `make` is processor time of making it, `check` of looking whether it is in order; `attach` and `detach` are the
    median for one pod beside the others. `app` is the private memory of what runs in it beside Envoy, `files` what it
    has in the lab's tmpfs, `kernel` what the kernel's unreclaimable memory grew by.
    """

    pods: int
    make: float
    check: float
    attach: float
    detach: float
    app: float
    files: float
    kernel: float


def used() -> float:
    """Return the seconds of processor time of this process and its children: no Envoy is one."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def took(work: Callable[[], object]) -> float:
    """Return the processor time of `work`, in ms."""
    before = used()
    work()
    return 1000 * (used() - before)


def unreclaimable() -> float:
    """Return the kernel's unreclaimable memory and that of its per-CPU data, in KB."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE))
    return float(found["SUnreclaim"]) + float(found["Percpu"])


def private(pid: int) -> float:
    """Return the memory of a process that it shares with no other, in KB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(float(number) for number in re.findall(r"^Private_\w+:\s+(\d+) kB$", text, re.MULTILINE))


def cost(lab: ManagedEmbeddedLab) -> Cost:
    """Make the pods that the lab lacks, attach all, and return what one of those made now cost."""
    lab.node.ensure()
    new = [pod for pod in lab._mesh.pods if not pod.netns.exists()]
    before = unreclaimable()
    make = took(lambda: [pod.ensure() for pod in new]) / len(new)  # and not what it takes to look at the others
    lab._mesh.wait_ready(300)
    make += took(lambda: lab.dataplane.serve_beside(new)) / len(new)
    kernel = (unreclaimable() - before) / len(new)
    problems: list[str] = []
    check = took(lambda: problems.extend([*lab.mesh.problems(), *lab.dataplane.problems()])) / len(lab._mesh.pods)
    if problems:
        raise SystemExit(problems[0])
    reconciler, one = lab.dataplane._manager._reconciler, endpoint_of(lab._mesh.pods[0], lab.dataplane.legs)
    spans = [
        (took(lambda: reconciler.forget(one.uid)), took(lambda: reconciler.serve(one)))  # in this order
        for _ in range(TIMES)
    ]
    sleeps = [pod for pod in lab._mesh.pods if pod.spec.app == "sleep"]
    apps = statistics.median(private(pid) for pod in sleeps for pid in cgroup.processes(pod.cgroup / "app"))
    files = sum(each.stat().st_blocks / 2 for each in sleeps[-1].folder.rglob("*"))
    detach, attach = (statistics.median(each) for each in zip(*spans, strict=True))
    return Cost(len(lab._mesh.pods), make, check, attach, detach, apps, files, kernel)


def latency(pods: BenchPodSet) -> float:
    """Return the median latency of requests by eBPF, in s. Raise SystemExit for a sample that does not count."""
    (scenario,) = scenarios.chosen("latency")
    pods.run(generators.argv(scenario, pods.place, WARM_UP), 30)
    while True:
        before = pods.read()
        text = pods.run(generators.argv(scenario, pods.place, SAMPLE), 30)
        if not generators.missed_its_end(scenario, text, SAMPLE):
            loaded = generators.parse(scenario, text)
            if why := validity.why_invalid(Way.EBPF, loaded, before, pods.read()):
                raise SystemExit(f"a sample does not count: {why}")
            return loaded.value(scenario.figure)


@contextlib.contextmanager
def held(lab: ManagedEmbeddedLab, count: int) -> Iterator[None]:
    """Hold `count` connections of apps, by eBPF, for the block's duration: some thousand in each of some replicas."""
    pins, service = Pins(lab.machine.bpffs / lab.machine.name), topology.SERVICES[0]
    cookies = {netns.cookie(pod.netns) for pod in lab.replicas()}

    def carried() -> int:
        with pins.open_map("pairs") as pairs:
            return sum(pair["netns"][0] in cookies for pair in garbage.connections(pairs).values())

    with contextlib.ExitStack() as holders:
        started = []
        for number, first in enumerate(range(0, count, EACH)):
            words = ["-c", HOLDER, service.vip, str(service.port), str(min(EACH, count - first))]
            argv = lab.replicas()[number].argv_as_app(["/usr/bin/python3", "-I", "-S", *words])
            # Leaving the stack closes its input, and waits.
            started.append(
                holders.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            )
        if any(holder.stdout is None or holder.stdout.readline() != "open\n" for holder in started):
            raise SystemExit("the connections could not be opened")
        if (now := carried()) != count:
            raise SystemExit(f"eBPF carries {now} of {count} connections")
        yield
    if not poll_until(lambda: not carried(), timeout=60, awaiting="the connections to be gone"):
        raise SystemExit("the connections do not go away")


def compared(rounds: int, few: Callable[[], float], many: Callable[[], float]) -> Comparison:
    """Return many over few, in pairs that are in turn measured first and second."""
    pairs = []
    for number in range(1, rounds + 1):
        if number % 2:
            baseline, candidate = few(), many()
        else:
            candidate, baseline = many(), few()
        pairs.append(Pair(number, baseline, candidate))
    return compare(pairs, rows=2, higher_is_better=False)


def comparisons(lab: ManagedEmbeddedLab, rounds: int, connections: int) -> Iterator[tuple[str, Comparison]]:
    """Compare the latency of a pair of pods beside few and many others, and beside one and many connections."""
    plane = lab.dataplane
    names = {pod.spec.name for pod in lab.replicas()}
    with lab.bench_pods(direct=False) as pods:
        pods.enrol("A")
        measured = pods.sets["A"]

        def beside_few() -> float:
            plane.forget_beside(names)
            return latency(measured)

        def beside_many() -> float:
            plane.serve_beside(lab.replicas())
            return latency(measured)

        yield f"{len(lab._mesh.pods)} pods over {topology.FEWEST_PODS}", compared(rounds, beside_few, beside_many)
        plane.serve_beside(lab.replicas())

        def with_connections(count: int) -> float:
            with held(lab, count):
                return latency(measured)

        yield (
            f"{connections:,} connections over 1",
            compared(rounds, lambda: with_connections(1), lambda: with_connections(connections)),
        )


def show(out: Console, costs: Sequence[Cost]) -> None:
    """Print what the pods cost."""
    table = Table("pods", "make, ms", "check, ms", "attach, ms", "detach, ms", "app, KB", "files, KB", "kernel, KB")
    for each in costs:
        table.add_row(str(each.pods), *(f"{value:.1f}" for name, value in asdict(each).items() if name != "pods"))
    out.print("of one pod, processor time and memory beside Envoy's:", table)


def main() -> None:
    """Measure, print tables, and write the report."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--pods", default="4,30,100", help="numbers of pods, ascending, above 3")
    asked.add_argument("--rounds", type=int, default=8)
    asked.add_argument("--connections", type=int, default=20_000)
    asked.add_argument("--report", type=Path, help="an HTML file with plots")
    wanted = asked.parse_args()
    if ManagedEmbeddedLab(name=NAME).exists:
        raise SystemExit(f"a lab {NAME} is up: MERLAB_NAME={NAME} merlab down")
    costs: list[Cost] = []
    found: dict[str, Comparison] = {}
    out = Console()
    began = time.monotonic()
    lab = ManagedEmbeddedLab(name=NAME, pods=topology.FEWEST_PODS)
    try:
        # What is done once for a lab, however many pods it has, is not measured: modules, templates, programs.
        lab.node.ensure()
        lab._mesh.ensure()
        lab._mesh.wait_ready(300)
        lab.dataplane.ensure()
        for count in map(int, wanted.pods.split(",")):
            lab = ManagedEmbeddedLab(name=NAME, pods=count)
            costs.append(cost(lab))
        show(out, costs)
        for name, each in comparisons(lab, wanted.rounds, wanted.connections) if wanted.rounds else ():
            found[name] = each
            interval = f"{each.interval.low:.3f} to {each.interval.high:.3f}" if each.interval else each.why
            out.print(f"p50, {name}: {each.ratio or 0:.3f} ({interval}), {len(each.pairs)} rounds")
    finally:
        lab.dataplane.remove()
        lab.mesh.remove()
        lab.remove(60)
    facts = {"kernel": os.uname().release, "processor": cpu.model(), "cores": str(cpu.cores())}
    out.print(f"{facts}, {time.monotonic() - began:.0f} s")
    if wanted.report:
        wanted.report.write_text(html(costs, found, facts))


if __name__ == "__main__":
    main()
