"""The load generators: how each is started, and what it reports, as one record.

wrk is ended by SIGINT: it then reports as usual, and a sample may be shorter than the second that it counts in. If the
signal comes before wrk waits for the end of its time, it stops sending and still waits, so its rates are wrong; if it
comes even earlier, wrk just ends.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters import system_tools
from merbridge_lab.adapters.command import run
from merbridge_lab.bench import scenarios
from merbridge_lab.bench.scenarios import Figure, Load, Scenario
from merbridge_lab.errors import LabError
from merbridge_lab.requirements.packages import Distribution

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: load → the program on PATH and the entry of data/packages.txt that provides it.
PROGRAMS = {
    Load.WRK: "wrk",
    Load.WRK_CONNECT: "wrk",
    Load.WRK_BESIDE: "wrk",
    Load.H2LOAD: "h2load",
    Load.IPERF3_UP: "iperf3",
    Load.IPERF3_DOWN: "iperf3",
}
#: The rows whose load is wrk's: preceded by a short one that does not count.
WRKS = frozenset({Load.WRK, Load.WRK_CONNECT, Load.WRK_BESIDE})
#: How exactly wrk keeps its time, in seconds.
_TICK = 0.05
#: The rate of the open loop, per connection and second: far below what the slowest way can do.
_RATE = 250
#: It takes at least so many seconds: in one, no request may be late if there are to be enough for p99.
_OPEN = 2
#: A receiver that takes nothing for so long (seconds) is full; and the most that a sender offers, in bytes.
_QUIET, _MOST = 0.4, 2_000_000_000
#: h2load writes what it tells of each request into a file only.
_LOGGED = ': >"$0" && h2load --log-file="$0" "$@" && cat "$0"'
#: How long a receiver that does not read keeps a connection, in seconds.
UNREAD_HOLD = 3.0


@dataclass(frozen=True)
class Loaded:
    """What a generator reports: `requests` answered within `seconds`, `failed` others, `moved` bytes.

    `times` are "p50", "p90", "p99" and "p99.9" in seconds; `connections` is how many were opened at least.
    """

    requests: int
    failed: int
    moved: int
    seconds: float
    connections: int
    times: Mapping[str, float] = field(default_factory=dict)

    def value(self, figure: Figure) -> float:
        """Return the figure of a row. Raise KeyError or ZeroDivisionError if the generator did not report it."""
        if figure is Figure.RATE:
            return self.requests / self.seconds
        if figure is Figure.BYTES:
            return self.moved / self.seconds
        if figure is Figure.TAKEN:
            return float(self.moved)
        return self.times[figure.value]


@dataclass(frozen=True)
class Place:
    """Where a generator runs: the server's address and ports, and where the pod sees the files it needs.

    `log` is a file that may be written, and that goes with the pod.
    """

    address: str
    http_port: int
    bulk_port: int
    unread_port: int
    report_lua: str
    unread_py: str
    log: str


def argv(scenario: Scenario, place: Place, seconds: float) -> list[str]:
    """Return the argv of the load of a row, for about `seconds`."""
    if scenario.load in (Load.IPERF3_UP, Load.IPERF3_DOWN):
        back = ["--reverse"] if scenario.load is Load.IPERF3_DOWN else []
        whole = str(max(1, math.ceil(seconds)))
        return ["iperf3", "--client", place.address, "--port", str(place.bulk_port), "--time", whole, "--json", *back]
    if scenario.load is Load.UNREAD:
        words = ["send", place.address, str(place.unread_port), str(_QUIET), str(_MOST)]
        return ["/usr/bin/python3", "-I", "-S", "-B", place.unread_py, *words]
    url = f"http://{place.address}:{place.http_port}{scenario.path}"
    many = str(scenario.connections)
    if scenario.load is Load.H2LOAD:
        whole = str(max(_OPEN, math.ceil(seconds)))
        return ["sh", "-c", _LOGGED, place.log, "--h1", "-c", many, "--rps", str(_RATE), "-D", whole, url]
    new = scenario.load is Load.WRK_CONNECT
    header, cycles = (["-H", "Connection: close"], ["--", "cycles"]) if new else ([], [])
    wrk = ["wrk", "-t1", "-c", many, "-d", str(_most(seconds)), "-s", place.report_lua, *header, url, *cycles]
    return [*_interrupted(seconds), *wrk]


def transfer_argv(place: Place, seconds: float) -> list[str]:
    """Return the argv that transfers large bodies in the background for about `seconds`."""
    url = f"http://{place.address}:{place.http_port}{scenarios.BULK}"
    return [*_interrupted(seconds), "wrk", "-t1", "-c1", "-d", str(_most(seconds)), "-s", place.report_lua, url]


def _interrupted(seconds: float) -> list[str]:
    return ["timeout", "--preserve-status", "--signal=INT", f"--kill-after={_most(seconds) + 5}", f"{seconds:g}"]


def _most(seconds: float) -> int:
    return math.ceil(seconds) + 1


def missed_its_end(scenario: Scenario, text: str, seconds: float) -> bool:
    """Report whether the signal came to wrk too early, so that what it reports, if anything, is of no use."""
    if scenario.load not in WRKS:
        return False
    return not text.strip() or parse(scenario, text).seconds >= _most(seconds) - _TICK


def parse(scenario: Scenario, text: str) -> Loaded:
    """Return what the load of a row reported. Raise LabError if it reported something else."""
    try:
        if scenario.load in (Load.IPERF3_UP, Load.IPERF3_DOWN):
            return _iperf3(json.loads(text))
        if scenario.load is Load.UNREAD:
            told = json.loads(text)
            return Loaded(0, 0, int(told["taken"]), float(told["seconds"]), 1)
        return _h2load(text) if scenario.load is Load.H2LOAD else _wrk(scenario, text)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        program = PROGRAMS.get(scenario.load, "the sender")
        what = f"{program} reports nothing that merlab understands ({type(error).__name__}: {error})"
        raise LabError(what, hint="merlab doctor", stderr=text[-2000:], id="tool.failed") from error


def _wrk(scenario: Scenario, text: str) -> Loaded:
    told: dict[str, Any] = json.loads(text[text.rindex("{", 0, text.index('"errors"')) :])
    failed = sum(told["errors"].values())
    times = {name: value / 1e6 for name, value in told.items() if name.startswith("p")}
    requests = int(told["requests"])
    opened = requests if scenario.load is Load.WRK_CONNECT else scenario.connections
    return Loaded(requests, failed, int(told["bytes"]), told["duration"] / 1e6, opened, times)


_H2LOAD_TOTAL = re.compile(
    r"^requests: \d+ total, \d+ started, \d+ done, (?P<ok>\d+) succeeded, (?P<failed>\d+) failed, (?P<errored>\d+) "
    r"errored, (?P<timeout>\d+) timeout$",
    re.MULTILINE,
)
_H2LOAD_TIME = re.compile(r"^finished in (?P<value>[\d.]+)(?P<unit>us|ms|s),", re.MULTILINE)
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def _h2load(text: str) -> Loaded:
    """Parse the totals, and the percentiles from the log: a line a request, its third column is microseconds."""
    total, took = _H2LOAD_TOTAL.search(text), _H2LOAD_TIME.search(text)
    rows = [line.split("\t") for line in text.split("\n") if line.count("\t") == 2]  # noqa: PLR2004 - three columns
    if total is None or took is None or not rows:
        raise ValueError("no totals")
    spans = [int(micros) / 1e6 for _start, _status, micros in rows]
    # A connection asks again only when it was answered: while the server stalls, requests are late that the log counts
    # from when they were sent. Each that took longer than the interval stands for those that were due meanwhile.
    spans += [span - late / _RATE for span in spans for late in range(1, math.ceil(span * _RATE))]
    spans.sort()
    bad = sum(status != "200" for _start, status, _micros in rows)
    failed = max(bad, int(total["failed"]) + int(total["errored"]) + int(total["timeout"]))
    times = {f"p{percent:g}": percentile(spans, percent) for percent in (50, 90, 99, 99.9)}
    seconds = float(took["value"]) * _UNITS[took["unit"]]
    return Loaded(len(rows), failed, 0, seconds, 1, times)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of ascending values; there must be one."""
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1]


def _iperf3(told: Mapping[str, Any]) -> Loaded:
    if "error" in told:
        raise ValueError(told["error"])
    got = told["end"]["sum_received"]
    return Loaded(0, 0, int(got["bytes"]), float(got["seconds"]), 2)


#: How each program reports its version. wrk has no option for that alone, and exits with status 1.
_VERSIONS = {"wrk": ["wrk", "-v"], "h2load": ["h2load", "--version"], "iperf3": ["iperf3", "--version"]}
_NUMBER = re.compile(r"\S*\d+\.\d+\S*")


def versions(wanted: Sequence[Scenario]) -> dict[str, str]:
    """Return the versions of the generators of these rows, as they report them.

    Raise LabError, with the command that installs what is missing, if one is not on this machine.
    """
    names = list(dict.fromkeys(PROGRAMS[each.load] for each in wanted if each.load in PROGRAMS))
    if missing := [name for name in names if system_tools.find(name) is None]:
        what = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not on this machine"
        hint = Distribution.read().install(*missing)
        raise LabError(f"merlab bench needs a load generator: {what}", hint=hint, id="tool.missing")
    told = {name: _NUMBER.search(run(_VERSIONS[name], ok=range(256)).stdout) for name in names}
    return {name: found[0] if found else "unknown" for name, found in told.items()}
