"""merlab as a person calls it, its lab read without it, and the host before and after."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host_state import state
from tests import merlab_cli
from tests.merlab_cli import MERLAB

from merbridge_lab.adapters import bpf_syscall, cgroup, iptables, mounts, netns
from merbridge_lab.dataplane.pins import Pins
from merbridge_lab.labs.embedded import topology
from merbridge_lab.labs.embedded.host import Machine
from merbridge_lab.polling import limit, poll_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

NAME = "merlab-walk"
#: Longer than anything that is called here takes, in seconds.
LONG = limit(120.0)
_TRACE = Path("/sys/kernel/tracing")
_EVENT = "events/bpf_trace/bpf_trace_printk/enable"
#: The beginnings of names in /tmp that only the kind lab's commands and downloads make.
_OF_KIND = ("merlab-download-", "merlab-kind-")


def environment(name: str = NAME, **changes: str) -> dict[str, str]:
    """Return the environment of a call; see merlab_cli.environment."""
    return merlab_cli.environment(MERLAB_NAME=name, **changes)


def merlab(*words: str, prefix: tuple[str, ...] = (), **options: Any) -> subprocess.CompletedProcess[str]:
    """Call merlab."""
    options.setdefault("env", environment())
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        [*prefix, MERLAB, *words], capture_output=True, text=True, timeout=LONG, check=False, **options
    )


def step(report: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return one step of a report."""
    return next(dict(each) for each in report["steps"] if each["number"] == number)


def failed_checks(report: Mapping[str, Any]) -> set[str]:
    """Return the names of the checks that did not hold."""
    checks = [*report["standing"], *(check for each in report["steps"] for check in each["checks"])]
    return {check["name"] for check in checks if check["verdict"] == "fail"}


def is_plain(done: subprocess.CompletedProcess[str]) -> bool:
    """Report whether it complained in a sentence, not in a traceback."""
    return "Traceback" not in done.stderr + done.stdout and "internal error" not in done.stderr + done.stdout


class Running(merlab_cli.Started):
    """A running merlab that will be stopped in the middle."""

    def __init__(self, *words: str) -> None:
        super().__init__([MERLAB, *words], environment(), LONG)

    def reaches(self, moment: Callable[[], bool], timeout: float = 60.0) -> bool:
        """Wait until `moment` is true, checked a thousand times a second; return False if merlab has ended before."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if moment():
                return True
            try:
                self.process.wait(0.001)
            except subprocess.TimeoutExpired:
                continue
            done = self.end()
            print(done.stdout, done.stderr)  # noqa: T201 - shown where the test fails
            return False
        self.end(signal.SIGKILL)
        return False


def kill(*words: str, at: Callable[[], bool]) -> None:
    """Start merlab and kill it as soon as `at` is true."""
    running = Running(*words)
    assert running.reaches(at)
    done = running.end(signal.SIGKILL)
    assert done.returncode == -signal.SIGKILL


def kill_after(seconds: float, *words: str) -> None:
    """Start merlab and kill it after some seconds, wherever it is then."""
    running = Running(*words)
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.process.wait(seconds)
    running.end(signal.SIGKILL)


def seconds_of(*words: str) -> float:
    """Measure how long a successful call takes."""
    began = time.monotonic()
    done = merlab(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return time.monotonic() - began


class Lab:
    """The lab of the tests, read and broken without merlab."""

    def __init__(self, name: str = NAME) -> None:
        self.machine = Machine(name)
        self.run = self.machine.run
        self.pins = Pins(self.machine.bpffs / name)

    def netns(self, pod: str = "sleep") -> Path:
        return self.machine.netns(pod)

    def cgroup(self, pod: str, kind: str) -> Path:
        return Machine(self.machine.name).mesh_cgroup / pod / kind

    def pid(self, pod: str, kind: str) -> int:
        return cgroup.processes(self.cgroup(pod, kind))[0]

    def pids(self) -> list[int]:
        return cgroup.all_processes(Machine(self.machine.name).mesh_cgroup)

    def link(self, hook: str, pod: str = "sleep") -> Path:
        """Return where the link of a hook of a pod is pinned."""
        return self.pins.link(str(self.cookie(pod)), hook)

    def cookie(self, pod: str = "sleep") -> int:
        return netns.cookie(self.netns(pod))

    def rules(self, pod: str = "sleep") -> dict[str, list[str]]:
        """Return the rules of a pod by backend, without counters."""
        found = iptables.snapshot(self.netns(pod))
        return {
            backend: [re.sub(r"\[\d+:\d+\]", "", line) for line in text.splitlines() if not line.startswith("#")]
            for backend, text in found.texts.items()
        }

    def in_pod(self, pod: str, *argv: str, stdin: str | None = None) -> str:
        """Run the host's tools in a pod's network namespace."""
        done = subprocess.run(
            ["nsenter", f"--net={self.netns(pod)}", *argv], input=stdin, capture_output=True, text=True, check=True
        )
        return done.stdout

    @property
    def is_debugged(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.pins.config()["debug"])
        return False

    @property
    def is_flushed(self) -> bool:
        return (self.machine.saved / "sleep.rules").exists()

    @property
    def control_pair(self) -> list[str]:
        """Return what exists of control pods: cgroups, namespaces, folders."""
        places = [Machine(self.machine.name).cgroup / "twins", self.run / "netns", self.run / "mnt", self.run / "pods"]
        return [str(path) for place in places for path in place.glob("*-twin*")]

    def programs(self) -> dict[str, int]:
        """Return the ids of the pinned programs and links."""
        found = {}
        for kind in ("progs", "links", "maps"):
            for pin in sorted((self.pins.root / kind).rglob("*")):
                if not pin.is_dir():
                    found[str(pin.relative_to(self.pins.root))] = _id(pin, kind)
        return found

    def lasting(self) -> dict[str, Any]:
        """Return everything that a run on a healthy lab must leave unchanged."""
        pods = [pod.name for pod in topology.PODS]
        return {
            "pids": {f"{pod} {kind}": self.pid(pod, kind) for pod in pods for kind in ("app", "sidecar")},
            "programs": self.programs(),
            "rules": {pod: self.rules(pod) for pod in pods},
            "cookies": {pod: self.cookie(pod) for pod in pods},
        }


def _id(pin: Path, folder: str) -> int:
    """Return the id of what is pinned at `pin`, in the folder of its kind."""
    fd = bpf_syscall.pinned(pin)
    try:
        info = {"progs": bpf_syscall.prog_info, "links": bpf_syscall.link_info, "maps": bpf_syscall.map_info}[folder]
        return int(info(fd).id)
    finally:
        os.close(fd)


#: The moments of `up`, in order: what exists by then, read from the machine.
MOMENTS = {
    "run_directory": lambda lab: lab.run.exists(),
    "node": lambda lab: (lab.run / "netns" / "node").exists(),
    "first_pod": lambda lab: (lab.run / "netns" / "sleep").exists(),
    "last_pod": lambda lab: (lab.run / "netns" / "helloworld-v2").exists(),
    "sidecars": lambda lab: bool(len(lab.pids()) > 4),
    "loading": lambda lab: (lab.pins.root / "progs/connect4").exists(),
    "first_link": lambda lab: any(lab.pins.links()),
    "trace": lambda lab: lab.is_debugged,
    "twin": lambda lab: bool(lab.control_pair),
    "flushed": lambda lab: lab.is_flushed,
}


# -- the host ---------------------------------------------------------------------------------------------------------


def _output(*argv: str) -> list[str]:
    return sorted(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines())


def _others_objects(kind: str) -> set[int]:
    """Return the ids of the BPF objects that other labs on this machine have pinned."""
    found = set()
    for mount in mounts.table():
        if mount.fstype == "bpf" and mount.target.parts[:2] == ("/", "run") and mount.target.parts[2] != NAME:
            for pin in mount.target.rglob("*"):
                if pin.relative_to(mount.target).parts[1:2] == (kind,) and not pin.is_dir():
                    with contextlib.suppress(OSError):  # gone meanwhile
                        found.add(_id(pin, kind))
    return found


def _is_merlabs(kind: str, number: int) -> bool:
    """Report whether it has our name; what containers and other programs load meanwhile does not concern us."""
    with contextlib.suppress(OSError):  # gone meanwhile
        fd = bpf_syscall.by_id(kind, number)
        try:
            if kind == "link":
                return _is_merlabs("prog", bpf_syscall.link_info(fd).prog_id)
            return (bpf_syscall.prog_info if kind == "prog" else bpf_syscall.map_info)(fd).name.startswith("merlab")
        finally:
            os.close(fd)
    return False


def _objects() -> dict[str, set[int]]:
    pinned = {"prog": "progs", "link": "links", "map": "maps"}
    return {
        kind: {number for number in bpf_syscall.ids(kind) if _is_merlabs(kind, number)} - _others_objects(folder)
        for kind, folder in pinned.items()
    }


def _tracing() -> dict[str, object]:
    """Read the machine's own trace, through a mount that is on no path."""
    from merbridge_lab.adapters.kernel_features import detached_mount

    with detached_mount("tracefs") as root:
        place = Path(f"/proc/self/fd/{root}")
        instances = [each.name for each in (place / "instances").iterdir()]
        mine = [each for each in instances if each == NAME or each.startswith(f"{NAME}-")]
        return {"instances": mine, "event": (place / _EVENT).read_text().strip()}


@contextlib.contextmanager
def left_as_found() -> Iterator[dict[str, object]]:
    """Yield the picture of the host without a lab, which it must be again after `down`."""
    merlab("down")
    before = picture()
    yield before
    assert merlab("down").returncode == 0
    assert differences(before) == {}


def picture(name: str = NAME) -> dict[str, object]:
    """Return the state of the host, without what belongs to labs of other names."""
    temporary = [each.name for each in Path("/tmp").iterdir()]  # noqa: S108 - looked at, not written to
    return {
        **state(name),
        "addresses": _output("ip", "-o", "address"),
        "routes": _output("ip", "route", "show", "table", "all"),
        "tracing": _tracing(),
        # The unit tests run in parallel; what they make the kind lab's code create temporarily does not belong to this
        # lab.
        "temporary": sorted(
            each for each in temporary if each.startswith(("merlab", "bcc")) and not each.startswith(_OF_KIND)
        ),
        **_objects(),
    }


def differences(before: Mapping[str, object]) -> dict[str, object]:
    """Compare the host with `before`, waiting for what is ending; return the differences."""

    def now() -> dict[str, object]:
        seen = picture()
        return {key: (before[key], seen[key]) for key in before if seen[key] != before[key]}

    poll_until(lambda: not now(), timeout=5, awaiting="the host to be as before")
    return now()
