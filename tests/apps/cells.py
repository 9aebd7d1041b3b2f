"""Run the cells of one app in one lab, and compare those of two labs."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tests.apps import catalogue
from tests.apps.kit import PYTHON
from tests.apps.place import LabNotUpError
from tests.apps.server import Server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.apps.catalogue import App
    from tests.apps.kit import Kit
    from tests.apps.place import Place, Service

#: Seconds that a case has; the longest take 2 where nothing is wrong.
PATIENCE, PATIENCE_IN_BRIEF = 10.0, 6.0
OK = "ok"


class NotSeenError(Exception):
    """What an app does could not be seen; the message says why."""


@dataclass(frozen=True)
class Cell:
    """How a case ended in one lab: "ok", "wrong" or "stalled"."""

    outcome: str
    detail: str = ""
    seconds: float = 0.0
    connections: int = 0

    @property
    def is_right(self) -> bool:
        """Report whether it went as it should."""
        return self.outcome == OK


@dataclass
class Result:
    """What one app did in one lab."""

    cells: dict[str, Cell] = field(default_factory=dict)
    #: How many connections the client made, and lines about them in the access logs: the client's, the server's.
    connections: int = 0
    logged: tuple[int, int] = (0, 0)
    error: str = ""

    def replace(self, later: Result) -> None:
        """Take over the cells of a later run of some cases."""
        self.cells |= {case: cell for case, cell in later.cells.items() if case != catalogue.LAST}
        self.error = self.error or later.error


def run(app: App, cases: Sequence[str], lab: Place, kit: Kit, patience: float = PATIENCE) -> Result:
    """Run these cases of an app in one lab; tell in the result what prevented it."""
    try:
        return _run(app, cases, lab, kit, patience)
    except (NotSeenError, LabNotUpError, OSError, subprocess.SubprocessError) as error:
        return Result(error=str(error))


def _run(app: App, cases: Sequence[str], lab: Place, kit: Kit, patience: float) -> Result:
    """Run the cases; after each that is not right the app is restarted."""
    service = lab.service(catalogue.place(app))
    pod, room = service.pod, lab.rooms / f"{lab.way}-{service.port}"
    room.mkdir(parents=True, exist_ok=True)
    room.chmod(0o777)
    server = Server(lab, pod, service.port, app.server(kit, service.port, room), room)
    result = Result()
    before = lab.logged(service.port, pod)
    try:
        server.start()
        left = list(cases)
        while left:
            seen = _client(app, left, lab, kit, service, patience)
            result.cells |= seen
            left = left[len(seen) :]
            if left:
                server.stop()
                server.start()
        result.connections = sum(cell.connections for cell in result.cells.values())
        begun = time.monotonic()
        result.logged = _logged(lab, service.port, pod, before, result.connections)
        ended = min(result.logged) >= result.connections
        detail = "" if ended else f"{result.connections} connections, the sidecars logged {result.logged}"
        took = round(time.monotonic() - begun, 3)
        result.cells[catalogue.LAST] = Cell(OK if ended else "wrong", detail, took)
    finally:
        server.stop()
    return result


def _client(app: App, cases: Sequence[str], lab: Place, kit: Kit, to: Service, patience: float) -> dict[str, Cell]:
    """Run cases up to the first that is not right; at least one."""
    script = [PYTHON, "-B", kit.program("python/client.py"), app.talk]
    room = lab.rooms / f"{lab.way}-{to.port}"
    program = ["--", *app.client(kit, to.port, room)] if app.client else []
    argv = [*script, to.host, str(to.port), str(kit.pattern), str(patience), *cases, *program]
    done = subprocess.run(
        lab.argv(lab.client, argv),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60 + patience * len(cases),
    )
    seen: dict[str, Cell] = {}
    for line in done.stdout.splitlines():
        said = json.loads(line)
        case = str(said.pop("case"))
        seen[case] = Cell(**said)
    if not seen or done.returncode:
        raise NotSeenError(f"the client ended with {done.returncode}: {done.stderr.strip()[-1500:]}")
    return seen


def _logged(lab: Place, port: int, pod: str, before: tuple[int, int], wanted: int) -> tuple[int, int]:
    """Return the lines that were added to both access logs; Envoy writes them when a connection is closed."""
    deadline = time.monotonic() + lab.logs_within
    while True:
        now = lab.logged(port, pod)
        added = (now[0] - before[0], now[1] - before[1])
        if min(added) >= wanted or time.monotonic() > deadline:
            return added
        time.sleep(0.1)


@dataclass
class Row:
    """One app: its cells by the rules and by eBPF."""

    app: str
    results: dict[str, Result] = field(default_factory=dict)
    not_run: str = ""

    def cell(self, way: str, case: str) -> Cell | None:
        """Return a cell; None if the app does not have that case."""
        return self.results[way].cells.get(case) if way in self.results else None

    def worse(self) -> dict[str, str]:
        """Return the cases that are right by the rules and not by eBPF, and how they ended."""
        found = {}
        for case in catalogue.COLUMNS:
            reference, seen = self.cell("rules", case), self.cell("ebpf", case)
            if reference and seen and reference.is_right and not seen.is_right:
                found[case] = seen.outcome + (f": {seen.detail}" if seen.detail else "")
        return found

    def stalled(self) -> list[str]:
        """Return the cases that stalled in one of the labs alone: there it may have been the load."""
        found = []
        for case in catalogue.COLUMNS:
            outcomes = [cell.outcome for way in self.results if (cell := self.cell(way, case))]
            if sorted(outcomes) == ["ok", "stalled"]:
                found.append(case)
        return found

    def told(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"app": self.app, "not_run": self.not_run or None, "worse": self.worse()} | {
            way: asdict(result) for way, result in self.results.items()
        }
