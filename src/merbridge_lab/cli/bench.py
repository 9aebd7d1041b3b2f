"""`merlab bench`: whether eBPF pays off on this machine, by how much and for what."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merbridge_lab import __version__, exit_codes
from merbridge_lab.cli.app import (
    Debug,
    JsonFlag,
    LabName,
    Legs,
    NoColor,
    Quiet,
    Wait,
    WaitTimeout,
    app,
    patience,
)
from merbridge_lab.cli.session import Session
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from merbridge_lab.bench.measuring import Plan
    from merbridge_lab.bench.model import BenchResult, RowResult


def _rows(incomplete: str) -> list[str]:
    from merbridge_lab.bench.scenarios import NAMES

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in NAMES if name.startswith(last)]


@app.command()
def bench(
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows",
            metavar="R,…",
            autocompletion=_rows,
            help="Rows: latency, parallel, connect, bodies (these by default), bulk, up, down, unread, mixed, open.",
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", metavar="N", min=1, help="Rounds (default: as many as fit in the time).")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Take 30 seconds instead of two minutes.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Take 15 minutes: all rows, also without sidecars.")] = False,
    legs: Annotated[
        Legs | None, typer.Option("--legs", help="Whose messages eBPF moves: all, or safe (default: as in the lab).")
    ] = None,
    lab: LabName = None,
    wait: Wait = False,
    wait_timeout: WaitTimeout = None,
    json: JsonFlag = False,
    quiet: Quiet = False,
    debug: Debug = False,
    no_color: NoColor = False,
) -> None:
    """Measure how fast requests are by eBPF and by the rules, on pods made for it; the lab's own are not touched.

    Two equal sets of pods swap their ways from round to round. A row counts only if each request passed both sidecars,
    by the way that it claims. Ctrl-C keeps what was measured. Nothing else should be running meanwhile.

    Examples:  merlab bench    merlab bench --quick    merlab bench --rows latency,bulk --rounds 8
    merlab bench --full --json
    """
    began = time.monotonic()
    if quick and full:
        raise typer.BadParameter("--quick and --full exclude each other")
    with Session("bench", as_json=json, quiet=quiet, debug=debug, no_color=no_color) as run:
        from merbridge_lab.bench import generators
        from merbridge_lab.bench.measuring import Measurement

        plan = _plan(rows, rounds, quick=quick, full=full)
        profile = legs.value if legs else None
        with run.changing(lab, wait=patience(wait, wait_timeout), legs=profile) as chosen:
            chosen.require_up()
            versions = generators.versions(plan.scenarios)
            machine = _machine()
            chosen.sweep()
            run.console.awaits("the bench pods to be ready")
            with chosen.bench_pods(direct=plan.direct) as pods:
                measurement = Measurement(pods, plan, began=began, tell=run.console.doing)
                measurement.run()
            result = measurement.result({**machine, **versions})
        _show(run, result)
        if measurement.signum is not None:
            raise typer.Exit(exit_codes.SIGNALLED + measurement.signum)


def _plan(rows: str | None, rounds: int | None, *, quick: bool, full: bool) -> Plan:
    """Return what to measure. Raise UsageError for a row that does not exist."""
    from merbridge_lab.bench.measuring import FULL, QUICK, USUAL, Plan
    from merbridge_lab.bench.scenarios import DEFAULT, NAMES, chosen

    extent = QUICK if quick else FULL if full else USUAL
    scenarios = chosen(rows if rows is not None else ",".join(NAMES if full else DEFAULT))
    return Plan(scenarios, extent, rounds, direct=full)


def _machine() -> dict[str, str]:
    """Return what the machine is. Raise LabError if its processor is emulated."""
    from merbridge_lab.adapters import cpu

    if cpu.is_emulated():
        raise LabError(
            "this machine's processor is emulated (QEMU without KVM), so its times say nothing about a real one",
            hint="measure on a machine whose processor is not emulated",
            id="requirement.missing",
        )
    return {"merlab": __version__, "cpu": cpu.model(), "cores": str(cpu.cores())}


def _show(run: Session, result: BenchResult) -> None:
    if run.as_json:
        run.console.json({"schema": 1, "merlab": __version__, "lab": run.lab, **_as_json(result)})
        return
    for row in result.rows:
        run.console.say(f"{row.name}: {row.invalid or _medians(row)}")


def _medians(row: RowResult) -> str:
    from merbridge_lab.bench.model import Way

    found = {way: [sample.value for sample in row.samples if sample.way is way] for way in Way}
    told = [f"{way.value} {statistics.median(values):.6g} {row.unit}" for way, values in found.items() if values]
    return ", ".join(told) or "not measured"


def _as_json(result: BenchResult) -> dict[str, Any]:
    told = asdict(result)
    for row in told["rows"]:
        for sample in row["samples"]:
            sample["way"] = sample["way"].value
    return told
