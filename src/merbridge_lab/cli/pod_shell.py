"""The commands to use the lab by hand: exec, shell."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from merbridge_lab.cli.app import PASS_ON, Debug, LabName, NoColor, WorkloadName, app
from merbridge_lab.cli.session import Session
from merbridge_lab.errors import LabError
from merbridge_lab.lab import CONTROL_CLIENT
from merbridge_lab.observation import in_words

_EXAMPLE = "merlab exec sleep -- curl -s helloworld:5000/hello"


@app.command("exec", context_settings=PASS_ON)
def execute(
    context: typer.Context,
    workload: WorkloadName,
    without_ebpf: Annotated[
        bool, typer.Option("--without-ebpf", help="As a copy of the workload that eBPF does not serve.")
    ] = False,
    lab: LabName = None,
    debug: Debug = False,
) -> None:
    """Run a command as the workload's app: its network, its name resolution, its user. Its exit status is passed on.

    With --without-ebpf it is the control experiment: a copy of the workload, made for the moment, runs the command.
    Its rules are as the workload's are now: flushed if these are flushed.

    Examples:  merlab exec sleep -- curl -s helloworld:5000/hello
               merlab exec --without-ebpf sleep -- curl -s helloworld:5000/hello
    """
    with Session("exec", debug=debug, quiet=True) as run:
        if not context.args:
            raise typer.BadParameter(f"what should run? for example: {_EXAMPLE}")
        if without_ebpf:
            raise typer.Exit(_without_ebpf(run, lab, workload, context.args))
        with run.looking(lab) as chosen:
            argv = chosen.workload(workload).app_argv(context.args)
        from merbridge_lab.adapters.command import replace

        run.console.close()
        replace(argv)


def _without_ebpf(run: Session, lab: str | None, workload: str, argv: list[str]) -> int:
    """Run a command as a control client of `workload`; return its exit status."""
    with run.changing(lab, wait=0.0) as chosen:
        chosen.require_up()
        if CONTROL_CLIENT not in chosen.capabilities:
            raise LabError(chosen.why_missing(CONTROL_CLIENT), hint="merlab up --lab embedded", id="capability.missing")
        chosen.sweep()
        flushed = not chosen.workload(workload).rules.snapshot().istio
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(chosen.control_client(workload, sidecar=not flushed)).ready()
            if flushed:
                stack.enter_context(client.rules.flushed())
            state = "flushed" if flushed else "present"
            run.console.aside(
                f"this is {in_words(client.name)}, a copy of {workload} that eBPF does not serve;"
                f" its rules are {state}, as those of {workload}"
            )
            return _foreground(client.app_argv(argv))


@app.command()
def shell(
    workload: WorkloadName,
    lab: LabName = None,
    netns: Annotated[
        bool, typer.Option("--netns", help="Open a root shell with the host's tools in the pod's network namespace.")
    ] = False,
    debug: Debug = False,
    no_color: NoColor = False,
) -> None:
    """Open a shell as the workload's app; with --netns a root shell in its network namespace.

    With --netns the iptables that sees the pod's rules comes first in PATH. On exit the shell reports what was
    changed, and how to restore it.

    Examples:  merlab shell sleep    merlab shell sleep --netns
    """
    with Session("shell", debug=debug, no_color=no_color) as run:
        with run.looking(lab) as chosen:
            found = chosen.workload(workload)
            if found.rules.outstanding:
                run.console.remark(f"the nat rules of {workload} are flushed; to put them back:", "merlab restore")
            with found.shell(netns=netns) as (argv, welcome):
                run.console.say(welcome)
                status = _foreground(argv)
            for sentence in found.changes():
                run.console.say(sentence)
        raise typer.Exit(status)


def _foreground(argv: list[str]) -> int:
    from merbridge_lab.adapters.command import foreground

    return foreground(argv)
