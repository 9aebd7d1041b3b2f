"""`merlab bench`: whether eBPF pays off on this machine, by how much and for what."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from merbridge_lab import __version__, exit_codes
from merbridge_lab.cli.app import (
    Debug,
    JsonFlag,
    LabName,
    Legs,
    NoColor,
    Verbose,
    Wait,
    WaitTimeout,
    app,
    patience,
)
from merbridge_lab.cli.guest_option import KernelOption, run_in_guest
from merbridge_lab.cli.session import Session
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from merbridge_lab.bench.measuring import Extent, Plan
    from merbridge_lab.bench.statistics import BenchSummary


class FailOn(str, Enum):
    """What makes the exit status 1."""

    LOSS = "loss"


def _rows(incomplete: str) -> list[str]:
    from merbridge_lab.bench.scenarios import NAMES

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in NAMES if name.startswith(last)]


@app.command()
def bench(
    context: typer.Context,
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
    quick: Annotated[
        bool, typer.Option("--quick", help="Take 30 seconds instead of two minutes: latency alone.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Take 15 minutes: all rows, also without sidecars.")] = False,
    legs: Annotated[
        Legs | None, typer.Option("--legs", help="Whose messages eBPF moves: all, or safe (default: as in the lab).")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write a report as one HTML file, with plots.")
    ] = None,
    fail_on: Annotated[
        FailOn | None, typer.Option("--fail-on", help="Exit with 1 if a row is a loss, with 3 if that is not known.")
    ] = None,
    lab: LabName = None,
    kernel: KernelOption = None,
    wait: Wait = False,
    wait_timeout: WaitTimeout = None,
    json: JsonFlag = False,
    verbose: Verbose = 0,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Print only what follows, and what makes it doubtful.")
    ] = False,
    debug: Debug = False,
    no_color: NoColor = False,
) -> None:
    """Measure how fast requests are by eBPF and by the rules, on pods made for it; the lab's own are not touched.

    Two equal sets of pods swap their ways from round to round. A row counts only if each request passed both sidecars,
    by the way that it claims. Ctrl-C keeps what was measured. Nothing else should be running meanwhile.
    With -v it also shows CPU per request and percentiles.

    With --kernel it does up, bench and down in a virtual machine with that kernel, where KVM boots it.

    Examples:  merlab bench    merlab bench --quick    merlab bench --rows latency,bulk --rounds 8
    merlab bench --json --fail-on loss    merlab bench --full --report bench.html
    """
    if quick and full:
        raise typer.BadParameter("--quick and --full exclude each other")
    with Session("bench", as_json=json, verbose=verbose, quiet=quiet, debug=debug, no_color=no_color) as run:
        if kernel is not None:
            _plan(rows, rounds, quick=quick, full=full)
            run_in_guest(run, context, kernel)
        from merbridge_lab.bench import generators, html_report
        from merbridge_lab.bench.measuring import Measurement
        from merbridge_lab.bench.statistics import summarize

        if report is not None:
            html_report.require_writable(report)
        plan = _plan(rows, rounds, quick=quick, full=full)
        profile = legs.value if legs else None
        with run.changing(lab, wait=patience(wait, wait_timeout), legs=profile) as chosen:
            began = time.monotonic()
            chosen.require_up()
            versions = generators.versions(plan.scenarios)
            machine = _machine()
            chosen.sweep()
            run.console.awaits("the bench pods to be ready")
            with chosen.bench_pods(direct=plan.direct) as pods:
                measurement = Measurement(pods, plan, began=began, tell=run.console.doing)
                measurement.run()
        summary = summarize(measurement.result({**machine, **versions}))
        _show(run, summary)
        unwritten = report is not None and not _write(run, summary, report)
        if measurement.signum is not None:
            raise typer.Exit(exit_codes.SIGNALLED + measurement.signum)
        raise typer.Exit(exit_codes.CANNOT if unwritten else _status(summary, fail_on))


def _plan(rows: str | None, rounds: int | None, *, quick: bool, full: bool) -> Plan:
    """Return what to measure. Raise UsageError for a row that does not exist."""
    from merbridge_lab.bench import scenarios
    from merbridge_lab.bench.measuring import FULL, QUICK, USUAL, Plan

    extent: Extent = USUAL
    names: tuple[str, ...] = scenarios.DEFAULT
    if quick:
        extent, names = QUICK, scenarios.QUICK
    if full:
        extent, names = FULL, scenarios.NAMES
    wanted = scenarios.chosen(rows if rows is not None else ",".join(names))
    return Plan(wanted, extent, rounds, direct=full)


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


def _show(run: Session, summary: BenchSummary) -> None:
    from merbridge_lab.bench.bench_json import to_json

    if run.as_json:
        run.console.json(to_json(summary, lab=run.lab))
    else:
        run.console.benchmark(summary)


def _write(run: Session, summary: BenchSummary, report: Path) -> bool:
    """Write the report; return whether it could be written. With --json, the one object is printed already."""
    from merbridge_lab.bench import html_report

    try:
        html_report.write(report, summary, lab=run.lab)
    except LabError as error:
        run.console.error(error)
        return False
    run.console.note(f"report: {report}")
    return True


def _status(summary: BenchSummary, fail_on: FailOn | None) -> int:
    """Return the exit status: with `fail_on`, a row that says nothing, or a machine too noisy, is no success."""
    from merbridge_lab.bench.statistics import Claim

    if fail_on is None:
        return exit_codes.HELD
    if summary.noisy or any(row is None or row.comparison.claim is None for row in (*summary.rows, summary.noise)):
        return exit_codes.CANNOT
    return exit_codes.NOT_HELD if summary.claimed(Claim.LOSS) else exit_codes.HELD
