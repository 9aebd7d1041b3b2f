"""The commands that change the lab: up, step, verify, restore, down."""

from __future__ import annotations

from typing import Annotated

import typer

from merbridge_lab import signals
from merbridge_lab.cli import cluster_options
from merbridge_lab.cli.app import (
    PATIENCE,
    Backend,
    Debug,
    JsonFlag,
    LabName,
    LegsOption,
    NoColor,
    PodsOption,
    Quiet,
    Timeout,
    Verbose,
    Wait,
    WaitTimeout,
    app,
    patience,
    step_numbers,
)
from merbridge_lab.cli.demo import Auto, Demo, DemoFlag, EventsFlag, Minutes, Record
from merbridge_lab.cli.guest_option import KernelOption, run_in_guest
from merbridge_lab.cli.session import Session, numbers, selected


@app.command()
def up(
    context: typer.Context,
    lab: LabName = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="N", autocompletion=step_numbers, help="Stop after step N.")
    ] = None,
    iptables: Annotated[
        Backend | None, typer.Option("--iptables", help="Tables for Istio's rules (default: nft).")
    ] = None,
    legs: LegsOption = None,
    pods: PodsOption = None,
    live: DemoFlag = False,
    auto: Auto = None,
    minutes: Minutes = None,
    record: Record = None,
    kernel: KernelOption = None,
    dataplane: cluster_options.DataplaneOption = None,
    sidecars: cluster_options.SidecarsOption = None,
    kubeconfig: cluster_options.KubeconfigOption = None,
    kube_context: cluster_options.ContextOption = None,
    kind_image: cluster_options.KindImageOption = None,
    istio_hub: cluster_options.IstioHubOption = None,
    istio_tag: cluster_options.IstioTagOption = None,
    istio_set: cluster_options.IstioSetOption = None,
    image: cluster_options.ImageOption = None,
    merbridge_manifest: cluster_options.MerbridgeManifestOption = None,
    wait: Wait = False,
    wait_timeout: WaitTimeout = None,
    json: JsonFlag = False,
    as_events: EventsFlag = False,
    timeout: Timeout = PATIENCE,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    debug: Debug = False,
    no_color: NoColor = False,
) -> None:
    """Bring up the lab: run steps 0 to 9 and verify each.

    On a healthy lab it changes nothing that lasts; after a failure it goes on from what is missing.
    With --kernel the lab is in a virtual machine with that kernel, and goes with it; at a terminal, you get a shell
    there.

    Examples:  merlab up    merlab up --demo    merlab up --until 3    merlab up --pods 30
    """
    shown = Demo(live, auto, minutes, record)
    shown.require_possible(as_json=json)
    with Session(
        "up",
        as_json=json,
        as_events=as_events,
        verbose=verbose,
        quiet=quiet,
        debug=debug,
        no_color=no_color,
        brief=True,
    ) as run:
        wanted = range(numbers(until)[-1] + 1) if until is not None else None
        if kernel is not None:
            run_in_guest(run, context, kernel)
        shown.begin(run)
        from merbridge_lab.loader import steps
        from merbridge_lab.report import Report
        from merbridge_lab.runner import Runner

        options = cluster_options.options(
            dataplane=dataplane,
            sidecars=sidecars,
            kubeconfig=kubeconfig,
            context=kube_context,
            kind_image=kind_image,
            istio_hub=istio_hub,
            istio_tag=istio_tag,
            istio_set=istio_set,
            images=image,
            merbridge_manifest=merbridge_manifest,
        )
        backend, profile = iptables.value if iptables else None, legs.value if legs else None
        held = patience(wait, wait_timeout)
        with run.changing(lab, wait=held, backend=backend, legs=profile, pods=pods, options=options) as chosen:
            run.report = Report("up", chosen.name)
            for sentence in chosen.choices():
                run.console.note(sentence)
            chosen.recover()
            chain = steps() if wanted is None else selected(wanted)
            with shown.listener(run, chosen, chain[-1].number) as (listener, clock):
                runner = Runner(chosen, listener, patience=timeout, shows_all=live, clock=clock)
                runner.run(run.report, chain)
            run.finish(chosen, run.report)


@app.command()
def step(
    number: Annotated[
        str, typer.Argument(metavar="N|N..M", autocompletion=step_numbers, help="A step, or a range of steps.")
    ],
    lab: LabName = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the rules flushed after step 9, to play with.")] = False,
    live: DemoFlag = False,
    auto: Auto = None,
    minutes: Minutes = None,
    record: Record = None,
    wait: Wait = False,
    wait_timeout: WaitTimeout = None,
    json: JsonFlag = False,
    as_events: EventsFlag = False,
    timeout: Timeout = PATIENCE,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    debug: Debug = False,
    no_color: NoColor = False,
) -> None:
    """Rerun one step, or a range, with its checks, on the lab that is up.

    Examples:  merlab step 9    merlab step 5..9    merlab step 9 --demo    merlab step 9 --keep
    """
    shown = Demo(live, auto, minutes, record)
    shown.require_possible(as_json=json)
    with Session(
        "step",
        as_json=json,
        as_events=as_events,
        verbose=verbose,
        quiet=quiet,
        debug=debug,
        no_color=no_color,
    ) as run:
        wanted = numbers(number)
        if keep and wanted[-1] != 9:  # noqa: PLR2004 - the step that flushes
            raise typer.BadParameter("--keep goes with step 9, which flushes the rules")
        shown.begin(run)
        from merbridge_lab.report import Report
        from merbridge_lab.runner import Runner

        with run.changing(lab, wait=patience(wait, wait_timeout), keep=keep) as chosen:
            if wanted[0] > 0:
                chosen.require_up()
                chosen.sweep()
            run.report = Report("step", chosen.name)
            with shown.listener(run, chosen, wanted[-1]) as (listener, clock):
                runner = Runner(chosen, listener, patience=timeout, shows_all=live, clock=clock)
                runner.run(run.report, selected(wanted))
            if keep and chosen.workload("sleep").rules.outstanding:
                run.report.kept = True
                run.console.remark("the nat rules of sleep are left flushed; to put them back:", "merlab restore")
            run.finish(chosen, run.report)


@app.command()
def verify(
    context: typer.Context,
    lab: LabName = None,
    kernel: KernelOption = None,
    wait: Wait = False,
    wait_timeout: WaitTimeout = None,
    json: JsonFlag = False,
    as_events: EventsFlag = False,
    timeout: Timeout = PATIENCE,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    debug: Debug = False,
    no_color: NoColor = False,
) -> None:
    """Confirm, with proof, that requests succeed with the rules flushed; leave everything as it was.

    It measures what happens with and without eBPF, with and without rules, on both sides.

    With --kernel it does up, verify and down in a virtual machine with that kernel.

    Examples:  merlab verify    merlab verify --json    merlab verify -vv    merlab verify --kernel 6.12
    """
    with Session(
        "verify",
        as_json=json,
        as_events=as_events,
        verbose=verbose,
        quiet=quiet,
        debug=debug,
        no_color=no_color,
        terse=True,
    ) as run:
        if kernel is not None:
            run_in_guest(run, context, kernel)
        from merbridge_lab.report import Report
        from merbridge_lab.runner import Runner

        with run.changing(lab, wait=patience(wait, wait_timeout)) as chosen:
            chosen.require_up()
            chosen.sweep()
            run.report = Report("verify", chosen.name)
            runner = Runner(chosen, run.console.hear, patience=timeout)
            runner.prove(run.report, standing=selected(range(1, 4)), steps=selected(range(8, 10)))
            run.finish(chosen, run.report)


@app.command()
def restore(
    lab: LabName = None,
    wait: Wait = False,
    wait_timeout: WaitTimeout = None,
    json: JsonFlag = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    debug: Debug = False,
    no_color: NoColor = False,
) -> None:
    """Put flushed rules back, after `step 9 --keep` or after a crash; remove what a killed command left of its pods.

    Example:  merlab restore
    """
    with Session("restore", as_json=json, verbose=verbose, quiet=quiet, debug=debug, no_color=no_color) as run:
        with run.changing(lab, wait=patience(wait, wait_timeout)) as chosen:
            chosen.require_up()
            removed = chosen.sweep()
            restored = chosen.restore()
        if json:
            run.console.json({"schema": 1, "lab": run.lab, "restored": restored, "removed": removed})
            return
        if removed:
            run.console.say(f"removed, which a command had left when it was ended: {', '.join(removed)}")
        for name in restored:
            run.console.say(f"the nat rules of {name} are back")
        if not restored:
            run.console.say("nothing is flushed")


@app.command()
def down(
    lab: LabName = None,
    keep_cluster: cluster_options.KeepClusterOption = False,
    kubeconfig: cluster_options.KubeconfigOption = None,
    wait: Wait = False,
    wait_timeout: WaitTimeout = None,
    json: JsonFlag = False,
    timeout: Timeout = PATIENCE,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    debug: Debug = False,
    no_color: NoColor = False,
) -> None:
    """Remove all that merlab made, also after a crash; nothing to remove is a success.

    Examples:  merlab down    merlab down --wait
    """
    with Session("down", as_json=json, verbose=verbose, quiet=quiet, debug=debug, no_color=no_color) as run:
        from merbridge_lab.loader import steps
        from merbridge_lab.runner import undo

        options = cluster_options.options(kubeconfig=kubeconfig, keep_cluster=keep_cluster)
        with run.changing(lab, wait=patience(wait, wait_timeout), options=options) as chosen:
            removed = chosen.exists
            stays = chosen.stays() if removed else []
            with signals.shielded():
                try:
                    if removed:
                        undo(chosen, steps())
                finally:
                    chosen.remove(timeout)
        if json:
            run.console.json({"schema": 1, "lab": run.lab, "removed": removed, "stays": stays})
        else:
            gone = "what merlab put into the cluster is gone" if keep_cluster else "the lab is gone"
            run.console.say(gone if removed else "there was nothing to remove")
        for sentence in () if json else stays:
            run.console.say(sentence)
