"""The two labs side by side: one by the rules alone, one by eBPF; and what proves that they are that."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.labs.embedded.managed_lab import ManagedEmbeddedLab

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.apps.cells import Row

NAMES = {"rules": "merlab-appsrules", "ebpf": "merlab-appsebpf"}
CLIENT = "sleep"
#: Where an app may write; one directory an app and lab.
ROOMS = Path("/var/cache/merlab-apps-run")
_REDIRECT = re.compile(r"^\[(\d+):\d+\] -A ISTIO_REDIRECT ", re.MULTILINE)


class LabNotUpError(Exception):
    """A lab did not come up, or is not what it should be; the message says how."""


def merlab(name: str, *argv: str) -> None:
    """Run merlab over the lab of that name, with the services for apps. Raise LabNotUpError."""
    full = [sys.executable, "-m", "tests.apps.lab_command", *argv]
    seen = {key: value for key, value in os.environ.items() if key != "MERLAB_LAB"} | {"MERLAB_NAME": name}
    done = subprocess.run(full, env=seen, check=False, capture_output=True, text=True, timeout=180)
    if done.returncode:
        told = f"exit {done.returncode}\n{done.stderr}{done.stdout}"
        raise LabNotUpError(f"MERLAB_NAME={name} merlab {' '.join(argv)}: {told}")


@dataclass
class Witness:
    """What is counted around a run: packets of the client's ISTIO_REDIRECT rule, and bytes redirected by eBPF."""

    redirect_rule: int = 0
    mesh_bytes: int = 0
    app_bytes: int = 0

    def since(self, before: Witness) -> Witness:
        """Return what was added."""
        return Witness(
            self.redirect_rule - before.redirect_rule,
            self.mesh_bytes - before.mesh_bytes,
            self.app_bytes - before.app_bytes,
        )


class AppsLab:
    """One lab, whose pods run our apps."""

    def __init__(self, way: str) -> None:
        self.way, self.name = way, NAMES[way]
        self.lab = ManagedEmbeddedLab(name=self.name)
        self.pods = {workload.name: workload for workload in self.lab.workloads()}

    def argv(self, pod: str, argv: Sequence[str]) -> list[str]:
        """Return the argv that runs `argv` as the app of a pod: what `merlab exec` does."""
        return self.pods[pod].app_argv(argv)

    def witness(self) -> Witness:
        """Read the counters."""
        netns = str(self.pods[CLIENT].pod.netns)
        save = subprocess.run(
            ["nsenter", f"--net={netns}", "iptables-nft-save", "-c", "-t", "nat"],
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        ).stdout
        seen = Witness(redirect_rule=sum(int(found) for found in _REDIRECT.findall(save)))
        for counters in self.lab.dataplane.counters().values():
            seen.mesh_bytes += counters["mesh_redirected_bytes"]
            seen.app_bytes += counters["outbound_redirected_bytes"] + counters["inbound_redirected_bytes"]
        return seen

    def logged(self, port: int, server: str) -> tuple[int, int]:
        """Return how many lines both sidecars have written about a service: the client's, the server's."""
        ways = ((CLIENT, f" outbound|{port}||"), (server, f" inbound|{port}||"))
        texts = [(self.pods[pod].access_log.read_text(errors="replace"), wanted) for pod, wanted in ways]
        sent, received = (text.count(wanted) for text, wanted in texts)
        return sent, received


@contextlib.contextmanager
def both(options: Sequence[str] = ()) -> Iterator[dict[str, AppsLab]]:
    """Bring both labs up and take them down afterwards; `options` go to the `up` of the one by eBPF."""
    try:
        for name in NAMES.values():
            merlab(name, "down")
        with ThreadPoolExecutor(2) as pool:
            ups = {"rules": ("--until", "2"), "ebpf": options}
            list(pool.map(lambda way: merlab(NAMES[way], "up", "--lab", "embedded", *ups[way]), ups))
        labs = {way: AppsLab(way) for way in NAMES}
        if labs["rules"].lab.dataplane.attached or not labs["ebpf"].lab.dataplane.attached:
            raise LabNotUpError("eBPF is attached to the lab by the rules, or not to the other")
        yield labs
    finally:
        for name in NAMES.values():
            with contextlib.suppress(LabNotUpError):
                merlab(name, "down")
        shutil.rmtree(ROOMS, ignore_errors=True)


def unproved(rows: Sequence[Row], moved: Mapping[str, Witness]) -> list[str]:
    """Return what prevents the proof that each lab was what it is called, and that all apps were seen in it."""
    found = [f"{row.app} by {way}: {r.error}" for row in rows for way, r in row.results.items() if r.error]
    connections = {way: sum(row.results[way].connections for row in rows if way in row.results) for way in moved}
    if moved["rules"].redirect_rule < connections["rules"] or not connections["rules"]:
        found.append(f"by the rules: ISTIO_REDIRECT counted {moved['rules'].redirect_rule} of {connections['rules']}")
    if moved["ebpf"].redirect_rule:
        found.append(f"by eBPF: ISTIO_REDIRECT counted {moved['ebpf'].redirect_rule} connections")
    if not moved["ebpf"].mesh_bytes:
        found.append("by eBPF: no byte was redirected between sidecars")
    if moved["rules"].mesh_bytes:
        found.append("by the rules: bytes were redirected by eBPF")
    return found


@dataclass
class Server:
    """An app that runs in a pod of one lab."""

    lab: AppsLab
    pod: str
    port: int
    argv: list[str]
    room: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def log(self) -> Path:
        """What it said."""
        return self.room / "output"

    def start(self, seconds: float = 30.0) -> None:
        """Start it, and wait until it listens. Raise LabNotUpError if it does not."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.lab.argv(self.pod, self.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        deadline = time.monotonic() + seconds
        while not self._listens():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = self.log.read_text(errors="replace")[-1500:]
                raise LabNotUpError(f"{self.argv[0]} does not listen on {self.port} in {self.lab.name}:\n{said}")
            time.sleep(0.02)

    def _listens(self) -> bool:
        text = f":{self.port:04X} "
        netns = f"/proc/{self.process.pid}/net" if self.process else ""
        with contextlib.suppress(OSError):
            for name in ("tcp", "tcp6"):
                for line in Path(netns, name).read_text().splitlines():
                    fields = line.split()
                    # In the pod: before it has entered it, it sees the machine's.
                    if fields[3] == "0A" and f"{fields[1]} ".endswith(text):
                        return True
        return False

    def stop(self) -> None:
        """End it and all it started."""
        if self.process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1.5)
        # Workers of a stopped master hold the port until they are gone.
        deadline = time.monotonic() + 5
        while _members(self.process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.process = None


def _members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
