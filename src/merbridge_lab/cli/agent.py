"""The commands of the agent, which runs on each node of a cluster: agent run, agent status, and the like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merbridge_lab import exit_codes, signals
from merbridge_lab.cli.app import Debug, JsonFlag, Legs, NoColor, app
from merbridge_lab.cli.session import Session

if TYPE_CHECKING:
    from merbridge_lab.agent.startup import Places

group = typer.Typer(
    name="agent",
    help="Serve the mesh's pods of one node by eBPF: the process that runs on each node of a cluster.\n\n"
    "Istio's rules stay in place, and what the agent does not know is left to them: docs/agent.md.\n\n"
    "Examples:  merlab agent run    merlab agent status    merlab agent redirect off    merlab agent remove",
    no_args_is_help=True,
)
app.add_typer(group)

#: Where the manifest mounts the node's directories. AppArmor refuses changes below a path called /sys/fs/bpf.
_PINS, _RUN, _CGROUPS = Path("/host/bpf/merlab-agent"), Path("/run/merlab-agent"), Path("/host/cgroup")
_CRI = Path("/run/containerd/containerd.sock")
#: What outlives the node's restart.
_STATE = Path("/var/lib/merlab-agent")
_PORT = 15099


def _is_on(text: str) -> bool:
    if text not in ("on", "off"):
        raise typer.BadParameter(f"{text!r} is neither on nor off")
    return text == "on"


Pins = Annotated[Path, typer.Option("--pins", metavar="DIR", help="Directory for pins, on the node's bpffs.")]
Run = Annotated[Path, typer.Option("--run", metavar="DIR", help="Directory for the lock and for what status shows.")]
State = Annotated[
    Path,
    typer.Option("--state", metavar="DIR", help="Directory for kill switch and generation, on the node's disk."),
]
OnOff = Annotated[bool, typer.Argument(metavar="on|off", help="on or off.", parser=_is_on)]


def _places(pins: Path, run: Path, state: Path, *, cri: Path = _CRI, cgroups: Path = _CGROUPS) -> Places:
    from merbridge_lab.agent.startup import Places

    return Places(pins, run, state, cri, cgroups)


@group.command("run")
def run_agent(
    pins: Pins = _PINS,
    run: Run = _RUN,
    state: State = _STATE,
    cri: Annotated[Path, typer.Option("--cri", metavar="SOCKET", help="The container runtime's socket.")] = _CRI,
    cgroup: Annotated[Path, typer.Option("--cgroup", metavar="DIR", help="Where cgroup2 is mounted.")] = _CGROUPS,
    legs: Annotated[
        Legs, typer.Option("--legs", help="safe: only what no app can notice on this kernel; all: every leg.")
    ] = Legs.SAFE,
    debug: Annotated[bool, typer.Option("--debug", help="Have the programs tell all who read the trace.")] = False,
    once: Annotated[bool, typer.Option("--once", help="End when every pod has been looked at.")] = False,
    port: Annotated[
        int,
        typer.Option("--port", envvar="MERLAB_AGENT_PORT", help="Port on 127.0.0.1 for /metrics, /readyz, /healthz."),
    ] = _PORT,
    generation: Annotated[
        int | None,
        typer.Option(
            "--generation",
            metavar="N",
            envvar="MERLAB_GENERATION",
            help="A lower one does not take over from a higher one (default: from merlab's version).",
        ),
    ] = None,
) -> None:
    """Run the agent in the foreground, until SIGTERM; what is served then goes on, until merlab agent remove.

    Example:  merlab agent run --once
    """
    with Session("agent"):
        from merbridge_lab.agent import startup
        from merbridge_lab.dataplane import Profile

        places = _places(pins, run, state, cri=cri, cgroups=cgroup)
        try:
            startup.run(places, Profile(legs.value), generation=generation, port=port, debug=debug, once=once)
        except signals.Interrupted as stop:
            if stop.signum not in signals.SIGNALS[:2]:
                raise


@group.command("status")
def agent_status_(
    pins: Pins = _PINS,
    run: Run = _RUN,
    state: State = _STATE,
    json: JsonFlag = False,
    debug: Debug = False,
    no_color: NoColor = False,
) -> None:
    """Show which pods of the node are served, and why others are left to the rules; exit 0 if the agent is ready.

    It reads the pins and the node's disk, and works without a running agent, too. In the agent's pod it also asks the
    API server, and says so if that is away: what is served goes on, and the exit status is the same.

    Example:  merlab agent status --json
    """
    with Session("agent", as_json=json, debug=debug, no_color=no_color, quiet=True) as session:
        from merbridge_lab.agent import agent_status
        from merbridge_lab.agent.namespace_labels import NamespaceLabels

        told = agent_status.status(_places(pins, run, state).sources(), api_silence=NamespaceLabels().silence())
        if json:
            session.console.json(told)
        else:
            for line in agent_status.lines(told):
                session.console.say(line)
        raise typer.Exit(exit_codes.HELD if told["ready"] else exit_codes.NOT_HELD)


@group.command("counters")
def agent_counters(
    pins: Pins = _PINS, run: Run = _RUN, state: State = _STATE, json: JsonFlag = False, debug: Debug = False
) -> None:
    """Print every counter of every pod that is served, read from the pinned maps.

    Example:  merlab agent counters --json
    """
    with Session("agent", as_json=json, debug=debug, quiet=True) as session:
        from merbridge_lab.agent import agent_status

        told = agent_status.counters(_places(pins, run, state).sources())
        if json:
            session.console.json(told)
        else:
            for pod, counters in sorted(told.items()):
                for name, number in counters.items():
                    session.console.say(f"{pod} {name} {number}")


@group.command("pairs")
def agent_pairs(
    pins: Pins = _PINS, run: Run = _RUN, state: State = _STATE, json: JsonFlag = False, debug: Debug = False
) -> None:
    """Print the live connections that eBPF carries, read from the pinned maps.

    Example:  merlab agent pairs --json
    """
    with Session("agent", as_json=json, debug=debug, quiet=True) as session:
        from merbridge_lab.agent import agent_status

        told = agent_status.pairs(_places(pins, run, state).sources())
        if json:
            session.console.json({"schema": 1, "pairs": told})
        else:
            for pair in told:
                session.console.say(f"{pair['leg']} {pair['source']} -> {pair['original']} {pair['redirected_bytes']}")


@group.command("programs")
def agent_programs(
    pins: Pins = _PINS, run: Run = _RUN, state: State = _STATE, json: JsonFlag = False, debug: Debug = False
) -> None:
    """Print the programs and links of the node, read from the kernel.

    Example:  merlab agent programs --json
    """
    with Session("agent", as_json=json, debug=debug, quiet=True) as session:
        from merbridge_lab.agent import agent_status

        told = agent_status.programs(_places(pins, run, state).sources())
        if json:
            session.console.json({"schema": 1, **told})
        else:
            for program in told["programs"]:
                session.console.say(f"{program['name']} {program['type']} {program['id']} {program['attached_to']}")


@group.command("redirect")
def agent_redirect(on: OnOff, pins: Pins = _PINS, run: Run = _RUN, state: State = _STATE, debug: Debug = False) -> None:
    """Switch redirecting for the whole node: the kill switch. Off, all connections go by TCP and by Istio's rules.

    No agent need run; one that starts later leaves it off.

    Example:  merlab agent redirect off
    """
    with Session("agent", debug=debug):
        from merbridge_lab.agent import startup

        startup.redirect(_places(pins, run, state), on=on)


@group.command("debug")
def agent_debug(on: OnOff, pins: Pins = _PINS, run: Run = _RUN, state: State = _STATE, debug: Debug = False) -> None:
    """Switch on or off that the programs tell all who read the trace what they do, for the whole node.

    merlab agent trace does not need it.

    Example:  merlab agent debug on
    """
    with Session("agent", debug=debug):
        from merbridge_lab.agent import startup

        startup.debug(_places(pins, run, state), on=on)


@group.command("trace")
def agent_trace(
    pins: Pins = _PINS,
    run: Run = _RUN,
    state: State = _STATE,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    debug: Debug = False,
    no_color: NoColor = False,
) -> None:
    """Follow the trace of the node's pods until Ctrl-C; others who read it meanwhile lose nothing.

    Example:  merlab agent trace --json
    """
    with Session("agent", debug=debug, no_color=no_color, quiet=True) as session:
        sources = _places(pins, run, state).sources()
        try:
            for event in sources.reconciler.follow_trace():
                if not session.console.is_read:
                    break
                if event is not None:
                    session.console.trace_event(event, as_json=json)
        except signals.Interrupted as stop:
            if stop.signum not in signals.SIGNALS[:2]:
                raise


@group.command("remove")
def agent_remove(
    pins: Pins = _PINS,
    run: Run = _RUN,
    state: State = _STATE,
    json: JsonFlag = False,
    debug: Debug = False,
) -> None:
    """Detach every pod of the node, and leave no pin and no file; connections go on by TCP and by the rules.

    A running agent must have ended: it would attach everything again.

    Example:  merlab agent remove
    """
    with Session("agent", as_json=json, debug=debug, quiet=True) as session:
        from merbridge_lab.agent import startup

        told = startup.remove(_places(pins, run, state))
        if json:
            session.console.json(told)
        else:
            session.console.say(
                f"removed; {told['drained']} sockets went back to TCP, {told['left']} had bytes to read"
            )
