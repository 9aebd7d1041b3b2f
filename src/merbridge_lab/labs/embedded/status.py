"""The state of the lab, for `merlab status` and for a sysdump."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from merbridge_lab.adapters import netns
from merbridge_lab.adapters.command import run
from merbridge_lab.labs.embedded import logs, topology
from merbridge_lab.ruleset import RuleSet
from merbridge_lab.text import lines_of, read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from merbridge_lab.command_events import CommandTranscript
    from merbridge_lab.lab import Component
    from merbridge_lab.labs.embedded.components import MeshComponent
    from merbridge_lab.labs.embedded.dataplane import EmbeddedDataplane
    from merbridge_lab.labs.embedded.host import Machine
    from merbridge_lab.labs.embedded.pod import Pod
    from merbridge_lab.labs.embedded.workload import EmbeddedWorkload
    from merbridge_lab.requirements import Requirement

_BENCHMARK = (
    "the pods of a benchmark are here: one is running, or one was killed, whose pods the next command removes; the rest"
    " of the lab was not examined"
)
LAST_REPORT = "last-report.json"
#: How much of each log a sysdump includes, in bytes from its end.
_TAIL = 256 * 1024
#: How long a sysdump reads the trace, in seconds, and how many lines at most.
_TRACED, _LINES = 1.0, 5000


class Described(Protocol):
    """The parts of a lab whose state is described."""

    name: str
    machine: Machine

    @property
    def exists(self) -> bool:
        """Report whether anything of the lab exists."""

    @property
    def node(self) -> Component:
        """The machine that the pods run on."""

    @property
    def mesh(self) -> MeshComponent:
        """The pods."""

    @property
    def dataplane(self) -> EmbeddedDataplane:
        """The programs that intercept connections."""

    def workloads(self) -> Sequence[EmbeddedWorkload]:
        """Return the pods as the steps see them."""

    def replicas(self) -> Sequence[Pod]:
        """Return the pods that no step is about."""

    def requirements(self) -> list[Requirement]:
        """Probe what this machine offers and what it lacks."""

    def inventory(self) -> list[CommandTranscript]:
        """Return the eBPF that is in the kernel now."""


def describe(lab: Described) -> dict[str, Any]:
    """Return the state of the lab as `merlab status --json` prints it."""
    up = lab.exists
    workloads = lab.workloads() if up else []
    described = [_workload(workload) for workload in workloads]
    dataplane = lab.dataplane.describe() if up else {"kind": lab.dataplane.name, "attached": False, "programs": 0}
    return {
        "schema": 1,
        "lab": lab.name,
        "up": up,
        "workloads": described,
        "replicas": [replica.spec.name for replica in lab.replicas()] if up else [],
        "dataplane": dataplane,
        "path": _path(described, attached=bool(dataplane["attached"])) if up else [],
        "flushed": [workload.name for workload in workloads if workload.rules.outstanding],
        "problems": _problems(lab) if up else [],
    }


def _problems(lab: Described) -> list[str]:
    """Describe what is wrong; while the pods of a benchmark come and go, nothing can be said of the rest."""
    if any(netns.is_pinned(lab.machine.run / "netns" / name) for name in topology.BENCH_NAMES):
        return [_BENCHMARK]
    return [*lab.node.problems(), *lab.mesh.broken(), *lab.dataplane.problems()]


def _workload(workload: EmbeddedWorkload) -> dict[str, Any]:
    return {
        "name": workload.name,
        "pid": workload.pod.app_pid,
        "ip": workload.pod.spec.ip,
        "sidecar": workload.sidecar_ready,
        "rules": (workload.rules.snapshot() if workload.exists else RuleSet()).to_json(),
    }


def _path(described: list[dict[str, Any]], *, attached: bool) -> list[dict[str, str]]:
    """Return what brings a new request of sleep from each station to the next one."""

    def by(pod: dict[str, Any]) -> str:
        if attached:
            return "eBPF"
        if "unread" in pod["rules"]:
            return "what cannot be read"
        return "rules" if pod["rules"]["istio_rules"] else "nothing"

    client, *servers = described
    legs = [{"from": f"{client['name']}'s app", "by": by(client), "to": f"{client['name']}'s sidecar"}]
    legs += [
        {"from": f"{client['name']}'s sidecar", "by": by(server), "to": f"{server['name']}'s sidecar, then its app"}
        for server in servers
    ]
    return legs


def dump(lab: Described) -> dict[str, Callable[[], Any]]:
    """Return the parts of a sysdump, each with the function that returns its content; none contains a key."""
    parts: dict[str, Callable[[], Any]] = {
        "doctor.json": lambda: [asdict(requirement) for requirement in lab.requirements()],
        "status.json": lambda: describe(lab),
        "inventory.txt": lambda: "\n".join(f"$ {shown.command}\n{shown.output}" for shown in lab.inventory()),
        "kernel.txt": lambda: run(["uname", "-a"]).stdout,
    }
    if not lab.exists:
        return parts
    parts["last-report.json"] = (lab.machine.run / LAST_REPORT).read_text
    parts |= lab.dataplane.dump()
    parts["trace.txt"] = lambda: _trace(lab)
    parts["mounts.txt"] = lambda: _lines_with("/proc/self/mountinfo", lab.machine.name)
    for workload in lab.workloads():
        parts |= _of_pod(workload)
    return parts


def _trace(lab: Described) -> str:
    """Return the lines of the trace of one second; what other readers get stays theirs."""
    if not lab.dataplane.attached:
        return "no eBPF is attached, so there is no trace\n"
    until, lines = time.monotonic() + _TRACED, list[str]()
    for event in lab.dataplane.follow_trace():
        if event is not None:
            lines.append(event.raw)
        if time.monotonic() >= until or len(lines) >= _LINES:
            break
    return "".join(f"{line}\n" for line in lines) or f"nothing happened within {_TRACED:.0f} s\n"


def _of_pod(workload: EmbeddedWorkload) -> dict[str, Callable[[], Any]]:
    folder, name = workload.pod.folder, workload.name
    parts: dict[str, Callable[[], Any]] = {
        f"{name}/rules.txt": lambda: "\n".join(map(str, workload.rules.snapshot().texts.values())),
        f"{name}/network.txt": lambda: (
            run(workload.pod.argv_as_root(["ip", "address"])).stdout
            + run(workload.pod.argv_as_root(["ip", "route"])).stdout
            + run(workload.pod.argv_as_root(["ss", "-tanp"])).stdout
        ),
    }
    for each in ("access.log", "envoy.log", "app.log", "bootstrap.yaml", "hosts"):
        if (folder / each).exists():
            parts[f"{name}/{each}"] = lambda path=folder / each: logs.tail(path, _TAIL)  # type: ignore[misc]
    return parts


def _lines_with(path: str, word: str) -> str:
    return "\n".join(line for line in lines_of(read_text(Path(path))) if word in line)
