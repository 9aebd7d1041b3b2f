"""The options of a demo, and the listener that they ask for."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from merbridge_lab.cli.app import not_empty
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import UnreadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from merbridge_lab.cli.session import Session
    from merbridge_lab.events import Listener
    from merbridge_lab.lab import Lab
    from merbridge_lab.request_path import RequestPath

DemoFlag = Annotated[
    bool, typer.Option("--demo", "--pause", help="Live, command by command: Enter runs each, b goes back, q leaves.")
]
Auto = Annotated[
    float | None,
    typer.Option("--auto", metavar="S", min=0.0, help="With --demo: go on by itself, S seconds after each command."),
]
Minutes = Annotated[
    float | None,
    typer.Option("--minutes", metavar="M", min=1.0, help="With --demo: show how much of M minutes is used."),
]
Record = Annotated[
    str | None,
    typer.Option(
        "--record",
        metavar="FILE.cast",
        callback=not_empty,
        help="Record the terminal as asciicast v2, with a marker a step.",
    ),
]
EventsFlag = Annotated[
    bool, typer.Option("--events", help="With --json: an object a line while it runs; the report last.")
]


@dataclass(frozen=True)
class Demo:
    """How a run is shown: as a report, or live."""

    live: bool = False
    auto: float | None = None
    minutes: float | None = None
    record: str | None = None

    def require_possible(self, *, as_json: bool) -> None:
        """Raise BadParameter for options that do not fit together, or a demo without a terminal."""
        if self.record and as_json:
            raise typer.BadParameter("--record is for what people see: not with --json")
        if not self.live:
            if self.auto is not None or self.minutes is not None:
                raise typer.BadParameter("--auto and --minutes go with --demo")
            return
        if as_json:
            raise typer.BadParameter("--demo is for people: it needs a terminal, and no --json")
        if self.auto is None and not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise typer.BadParameter("--demo waits for keys: it needs a terminal, or --auto S")
        if os.environ.get("TERM", "dumb") in ("dumb", "unknown") and not self.record:
            raise typer.BadParameter("--demo needs a terminal that can move its cursor: set TERM, for example to xterm")
        if not (sys.stdout.isatty() or self.record):
            raise typer.BadParameter("--demo needs a terminal, or --record FILE.cast")

    def begin(self, run: Session) -> None:
        """Begin the recording, if there is one. Raise LabError if its file cannot be written."""
        if self.record:
            run.console.record(self.record)

    @contextlib.contextmanager
    def listener(self, run: Session, lab: Lab, last: int) -> Iterator[tuple[Listener, Callable[[], float]]]:
        """Yield what listens to the run, whose last step is `last`, and the clock that its times are taken from."""
        if not self.live:
            yield run.console.hear, time.monotonic
            return
        from merbridge_lab.console.keys import AutomaticKeys, Keys, TerminalKeys

        with contextlib.ExitStack() as stack:
            keys: Keys
            if self.auto is None:
                keys = terminal = TerminalKeys()
                stack.enter_context(terminal.listening())
            else:
                keys = AutomaticKeys(self.auto)
            presenter = run.console.presenter(keys, lambda: state(lab), self.minutes, last)
            stack.callback(lambda: run.console.note(f"the demo has ended; {state(lab)[0]}"))
            stack.enter_context(presenter.showing())
            yield presenter.hear, presenter.clock


def state(lab: Lab) -> tuple[str, RequestPath | None]:
    """Describe the lab now: how many nat rules sleep has and whether eBPF is attached, and the path of a request."""
    from merbridge_lab.request_path import expected

    rules, path = "-", None
    ebpf: bool | None = None
    with contextlib.suppress(LabError, OSError, UnreadError):
        ebpf = lab.dataplane.attached
    with contextlib.suppress(LabError, OSError, UnreadError):
        seen = lab.workload("sleep").rules.snapshot()
        rules = seen.nat_count
        path = expected(
            "sleep",
            tuple(server.name for server in lab.servers()),
            rules=bool(seen.istio),
            server_rules=all(server.rules.snapshot().istio for server in lab.servers()),
            attached=ebpf,
        )
    word = "not read" if ebpf is None else "on" if ebpf else "off"
    return f"rules: {rules}   eBPF: {word}", path
