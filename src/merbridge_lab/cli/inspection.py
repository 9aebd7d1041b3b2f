"""The commands that look and change nothing: status, doctor, steps, trace, sysdump."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from merbridge_lab import exit_codes, hints, signals
from merbridge_lab.cli import cluster_options
from merbridge_lab.cli.app import (
    WORKLOADS,
    Debug,
    JsonFlag,
    LabName,
    NoColor,
    app,
    completing,
    known_workload,
    not_empty,
    step_numbers,
)
from merbridge_lab.cli.guest_option import KernelOption, run_in_guest
from merbridge_lab.cli.session import Session, numbers, selected
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merbridge_lab.lab import Lab
    from merbridge_lab.managed_lab import ManagedLab
    from merbridge_lab.model import Step


#: The state of a step, for users who may not read the lab.
_UNKNOWN = "not known"


@app.command()
def status(lab: LabName = None, json: JsonFlag = False, debug: Debug = False, no_color: NoColor = False) -> None:
    """Show which lab is up, its pods, which path a request takes, and what is flushed right now.

    Example:  merlab status --json
    """
    with Session("status", as_json=json, debug=debug, no_color=no_color, quiet=True) as run:
        from merbridge_lab.labs import selection

        with run.looking(lab, up=False) as chosen:
            described = {**chosen.describe(), "labs": selection.present()}
        if json:
            run.console.json(described)
        else:
            run.console.status(described)


@app.command()
def doctor(
    context: typer.Context,
    lab: LabName = None,
    kernel: KernelOption = None,
    json: JsonFlag = False,
    debug: Debug = False,
    no_color: NoColor = False,
) -> None:
    """Check what this machine offers and lacks: one line each, with the command that fixes it.

    With --kernel it looks at this machine as it would be under another kernel, in a virtual machine.

    Examples:  merlab doctor    merlab doctor --kernel 6.12
    """
    with Session("doctor", as_json=json, debug=debug, no_color=no_color, quiet=kernel is None) as run:
        if kernel is not None:
            run_in_guest(run, context, kernel)
        from merbridge_lab import requirements

        driver = run.driver(lab)
        found = driver.requirements()
        able = requirements.able(found)
        if json:
            checks = [{**vars(each), "hint": hints.rendered(each.hint)} for each in found]
            run.console.json({"schema": 1, "lab": driver.name, "able": able, "checks": checks})
        else:
            run.console.requirements(found)
            if [each.name for each in found if each.verdict == "fail"] == ["root"] and os.geteuid() != 0:
                run.console.say(f"only root can run the {driver.name} lab; doctor as root checks the rest")
            else:
                run.console.say(f"this machine {'can' if able else 'cannot'} run the {driver.name} lab")
        raise typer.Exit(exit_codes.HELD if able else exit_codes.CANNOT)


@app.command()
def steps(
    number: Annotated[
        str | None,
        typer.Argument(metavar="N", autocompletion=step_numbers, callback=not_empty, help="Describe this step."),
    ] = None,
    lab: LabName = None,
    json: JsonFlag = False,
    debug: Debug = False,
    no_color: NoColor = False,
) -> None:
    """List the steps with their state, or describe one step with the commands that a person would type for it.

    Examples:  merlab steps    merlab steps 9
    """
    with Session("steps", as_json=json, debug=debug, no_color=no_color, quiet=True) as run:
        from merbridge_lab.loader import steps as all_steps
        from merbridge_lab.original_commands import original

        wanted = numbers(number) if number else None
        with run.looking(lab, up=False, offline=True) as chosen:
            if wanted is None:
                states = chosen.states(all_steps()) if run.barred is None else [_UNKNOWN] * len(all_steps())
                rows = list(zip(all_steps(), states, strict=True))
            else:
                told = [
                    (each, *_typed(each, chosen)) for each in (one.on(chosen.capabilities) for one in selected(wanted))
                ]
            typed_then = original if chosen.follows_original else lambda _: ()
        if json and wanted is None:
            listed = [{"number": each.number, "title": each.title, "state": state} for each, state in rows]
            run.console.json({"schema": 1, "lab": run.lab, "steps": listed})
        elif json:
            stories = [
                {
                    "number": each.number,
                    "title": each.title,
                    "narration": each.narration,
                    "commands": [hints.command(typed) for typed in commands],
                    "note": note or None,
                    "original": [vars(one) for one in typed_then(each.number)],
                    "checks": [check.name for check in each.verify + each.request_checks],
                }
                for each, commands, note in told
            ]
            run.console.json({"schema": 1, "lab": run.lab, "steps": stories})
        elif wanted is None:
            run.console.steps(rows)
            if run.barred is not None:
                run.console.remark("to see the states of the lab that is up, as root:", "merlab steps")
        else:
            for each, commands, note in told:
                run.console.narrate(each, commands, typed_then(each.number), note)


def _typed(step: Step, lab: ManagedLab) -> tuple[list[str], str]:
    """Return the commands for a step, none if the lab lacks what it needs; and a note on them.

    For a lab that does not exist, the commands contain placeholders instead of the names of pods and PIDs.
    """
    note = ""
    try:
        commands = [] if step.needs - lab.capabilities else step.commands(lab)
    except LabError as error:
        offline = lab.offline_commands()
        # It has only what the commands of steps use of a lab.
        commands = step.commands(cast("Lab", offline)) if offline else []
        note = _stand_for(offline.words if offline else (), commands, error)
    for command in commands:
        lab.show(command)
    return [shown.command for shown in lab.shown()], note


def _stand_for(words: Sequence[str], commands: Sequence[str], why: LabError) -> str:
    if not commands:
        return f"the commands cannot be determined now: {why.what}"
    used = [word for word in words if any(word in re.findall(r"\w+", command) for command in commands)]
    verb = "is a placeholder" if len(used) == 1 else "are placeholders"
    return f"{' and '.join(used)} {verb} for what the lab will have: {why.what}" if used else ""


@app.command()
def manifests(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", callback=not_empty, help="One manifest (default: all that are applied)."),
    ] = None,
    image: cluster_options.ImageOption = None,
    istio_hub: cluster_options.IstioHubOption = None,
    istio_tag: cluster_options.IstioTagOption = None,
    merbridge_manifest: cluster_options.MerbridgeManifestOption = None,
    json: JsonFlag = False,
    debug: Debug = False,
) -> None:
    """Print what a step applies to a cluster, for kubectl apply -f -; "kind" is for kind create cluster --config -.

    "helper" is applied only where the node has no iptables or nsenter, "merbridge" and "merlab" with
    the --dataplane of that name.

    Examples:  merlab manifests sleep | kubectl apply -f -    merlab manifests
    """
    with Session("manifests", as_json=json, debug=debug, quiet=True) as run:
        from merbridge_lab.labs.kubernetes import manifests as known
        from merbridge_lab.labs.kubernetes.settings import Settings

        settings = Settings.default().asked(
            cluster_options.options(
                images=image, istio_hub=istio_hub, istio_tag=istio_tag, merbridge_manifest=merbridge_manifest
            )
        )
        names = [name] if name else list(known.APPLIED)
        if json:
            run.console.json({"schema": 1, "manifests": {each: known.text(each, settings) for each in names}})
        else:
            run.console.text(known.texts(names, settings))


@app.command()
def trace(
    lab: LabName = None,
    raw: Annotated[bool, typer.Option("--raw", help="Print one line per event, undecoded.")] = False,
    pod: Annotated[
        str | None,
        typer.Option(
            "--pod",
            metavar="POD",
            callback=known_workload,
            autocompletion=completing(*WORKLOADS),
            help="Show only connections that POD dials or accepts.",
        ),
    ] = None,
    nonce: Annotated[
        str | None, typer.Option("--nonce", metavar="ID", help="Show only the request with this x-request-id.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    debug: Debug = False,
    no_color: NoColor = False,
) -> None:
    """Follow the dataplane's trace until Ctrl-C, with pods and legs by name; then print totals.

    A request has three legs: 1 from the app to its sidecar, 2 from sidecar to sidecar, 3 from a sidecar to its app.
    Seconds are counted from when the app dials. Others who follow the trace meanwhile lose nothing.

    Examples:  merlab trace    merlab trace --pod sleep    merlab trace --raw    merlab trace --json
    """
    with Session("trace", debug=debug, no_color=no_color) as run, run.looking(lab) as chosen:
        if pod is not None:
            chosen.workload(pod)
        told = None if raw or json else run.console.conversation(chosen.trace_context())
        is_followed = False
        try:
            for event in chosen.follow_trace(pod=pod, nonce=nonce):
                if not is_followed:
                    run.console.note("following the trace; Ctrl-C ends it")
                    is_followed = True
                if not run.console.is_read:  # head -1 has gone
                    break
                if told is not None:
                    told.hear(event)
                elif event is not None:
                    run.console.trace_event(event, as_json=json)
        except signals.Interrupted as stop:
            if stop.signum != signals.SIGNALS[0]:
                raise
        if told is not None:
            told.end()


@app.command()
def sysdump(
    lab: LabName = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", callback=not_empty, help="Output file (default: a name with the time)."
        ),
    ] = None,
    json: JsonFlag = False,
    debug: Debug = False,
    no_color: NoColor = False,
) -> None:
    """Pack what a bug report needs into one file: versions, doctor, rules, programs, logs, the last report; no keys.

    Example:  merlab sysdump -o bug.tar.gz
    """
    with Session("sysdump", as_json=json, debug=debug, no_color=no_color, quiet=True) as run:
        from merbridge_lab import sysdump as dump

        driver = run.driver(lab)
        driver.require_able()
        with driver.open() as chosen:
            target = Path(output or dump.name_now())
            names = dump.write(target, chosen)
        if json:
            run.console.json({"schema": 1, "lab": run.lab, "file": str(target), "holds": names})
        else:
            run.console.say(f"{target}: {len(names)} files, no keys among them")
