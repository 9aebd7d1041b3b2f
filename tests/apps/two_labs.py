"""Two embedded labs side by side: one by the rules alone, one by eBPF."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tests.apps import lab_command, place
from tests.apps.place import LabNotUpError, Service, Witness

from merbridge_lab.labs.embedded.managed_lab import ManagedEmbeddedLab

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NAMES = {"rules": "merlab-appsrules", "ebpf": "merlab-appsebpf"}


def merlab(name: str, *argv: str) -> None:
    """Run merlab over the lab of that name, with the services for apps. Raise LabNotUpError."""
    full = [sys.executable, "-m", "tests.apps.lab_command", *argv]
    seen = {key: value for key, value in os.environ.items() if key != "MERLAB_LAB"} | {"MERLAB_NAME": name}
    done = subprocess.run(full, env=seen, check=False, capture_output=True, text=True, timeout=180)
    if done.returncode:
        told = f"exit {done.returncode}\n{done.stderr}{done.stdout}"
        raise LabNotUpError(f"MERLAB_NAME={name} merlab {' '.join(argv)}: {told}")


class AppsLab:
    """One lab, whose pods run our apps: a `Place`."""

    client = "sleep"
    rooms = Path("/var/cache/merlab-apps-run")
    logs_within = 10.0

    def __init__(self, way: str) -> None:
        self.way, self.name = way, NAMES[way]
        self.lab = ManagedEmbeddedLab(name=self.name)
        self.pods = {workload.name: workload for workload in self.lab.workloads()}

    def service(self, number: int) -> Service:
        """Return one of the services for apps."""
        found = lab_command.services()[number]
        return Service(found.endpoints[0].account, found.vip, found.port)

    def argv(self, pod: str, argv: Sequence[str]) -> list[str]:
        """Return the argv that runs `argv` as the app of a pod: what `merlab exec` does."""
        return self.pods[pod].app_argv(argv)

    def bring(self, pod: str, room: Path) -> None:
        """Do nothing: the pods have this machine's files."""

    def witness(self) -> Witness:
        """Read the counters."""
        seen = Witness(redirect_rule=place.redirect_rule(str(self.pods[self.client].pod.netns)))
        for counters in self.lab.dataplane.counters().values():
            seen.add(counters)
        return seen

    def logged(self, port: int, server: str) -> tuple[int, int]:
        """Return how many lines both sidecars have written about a service: the client's, the server's."""
        return place.logged(port, *(self.pods[pod].access_log for pod in (self.client, server)))


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
        shutil.rmtree(AppsLab.rooms, ignore_errors=True)
