"""The rows of the benchmark: what is sent, by which generator, and which figure counts."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from merbridge_lab.errors import UsageError

#: The paths that the server answers, and the size of each body in bytes.
SMALL, BODY, BULK = "/", "/1mb", "/bulk"
BODIES = {SMALL: 2, BODY: 1_000_000, BULK: 16_000_000}


class Load(enum.Enum):
    """Who sends: each has its argv and its parser in generators.py."""

    WRK = "wrk"
    #: wrk with a new connection for each request.
    WRK_CONNECT = "wrk, new connections"
    #: wrk for small requests, while another one transfers large bodies.
    WRK_BESIDE = "wrk, beside a transfer"
    H2LOAD = "h2load"
    IPERF3_UP = "iperf3"
    IPERF3_DOWN = "iperf3 -R"
    UNREAD = "unread"


class Figure(enum.Enum):
    """Which figure of a load is the row's value."""

    P50 = "p50"
    P99 = "p99"
    RATE = "requests per second"
    BYTES = "bytes per second"
    TAKEN = "bytes"


#: figure → unit, and whether a higher value is better.
UNITS = {
    Figure.P50: ("s", False),
    Figure.P99: ("s", False),
    Figure.RATE: ("requests/s", True),
    Figure.BYTES: ("B/s", True),
    Figure.TAKEN: ("B", False),
}


@dataclass(frozen=True)
class Scenario:
    """One row: `load` sends with `connections` to `path`, and `figure` of it counts.

    A sample is so many `times` longer than that of other rows: a high percentile needs many requests.
    """

    name: str
    title: str
    load: Load
    figure: Figure
    connections: int = 1
    path: str = SMALL
    times: int = 1

    @property
    def unit(self) -> str:
        """The unit of the row's values."""
        return UNITS[self.figure][0]

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value is better."""
        return UNITS[self.figure][1]


SCENARIOS = (
    Scenario("latency", "keep-alive, 1 connection, p50", Load.WRK, Figure.P50),
    Scenario("parallel", "16 connections", Load.WRK, Figure.RATE, connections=16),
    Scenario("connect", "new connection for each request, p50", Load.WRK_CONNECT, Figure.P50),
    Scenario("bodies", "1 MB bodies", Load.WRK, Figure.RATE, path=BODY),
    Scenario("bulk", "bulk HTTP, 16 MB bodies", Load.WRK, Figure.BYTES, path=BULK),
    Scenario("up", "raw TCP, from the client", Load.IPERF3_UP, Figure.BYTES),
    Scenario("down", "raw TCP, to the client", Load.IPERF3_DOWN, Figure.BYTES),
    Scenario("unread", "let in by a receiver that does not read", Load.UNREAD, Figure.TAKEN),
    Scenario("mixed", "16 connections beside a transfer, p99", Load.WRK_BESIDE, Figure.P99, connections=16, times=4),
    Scenario("open", "open loop, 1000 requests/s, p99", Load.H2LOAD, Figure.P99, connections=4, times=2),
)
NAMES = tuple(scenario.name for scenario in SCENARIOS)
#: The rows that are measured unless others are asked for.
DEFAULT = ("latency", "parallel", "connect", "bodies")
#: And where time is short: with more rows, there are fewer rounds, and a verdict needs some.
QUICK = ("latency",)


def chosen(names: str) -> tuple[Scenario, ...]:
    """Return the rows named in `names`, separated by commas. Raise UsageError for one that does not exist."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in NAMES:
            raise UsageError(f"there is no row called {name!r}; there are {', '.join(NAMES)}")
    if not wanted:
        raise UsageError(f"no row is named; there are {', '.join(NAMES)}")
    return tuple(scenario for scenario in SCENARIOS if scenario.name in wanted)
