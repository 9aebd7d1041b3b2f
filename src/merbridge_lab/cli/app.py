"""The application, and the options that its commands share."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from merbridge_lab import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(
    name="merlab",
    help="A walkthrough of eBPF in a service mesh that proves each of its claims.\n\n"
    "Start with `merlab up`, then `merlab step 9`, `merlab verify`, `merlab down`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def completing(*names: str) -> Callable[[str], list[str]]:
    """Return a function that completes a word to one of `names`."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def not_empty(given: str | None) -> str | None:
    """Check a text that may be left out. Raise BadParameter for one that is there and empty: a variable was not set."""
    if given is not None and not given.strip():
        raise typer.BadParameter("it is empty")
    return given


JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
LabName = Annotated[
    str | None,
    typer.Option(
        "--lab",
        metavar="auto|embedded|kind|cluster",
        autocompletion=completing("auto", "embedded", "kind"),
        help="The lab (default: the one that is up, else MERLAB_LAB, else auto).",
    ),
]
Timeout = Annotated[float, typer.Option("--timeout", metavar="S", min=0.1, help="Seconds to wait for a check to pass.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Wait for another merlab command on the same lab, as long as it runs.")
]
WaitTimeout = Annotated[
    float | None, typer.Option("--wait-timeout", metavar="S", min=0.0, help="Wait for it for at most S seconds.")
]
Verbose = Annotated[
    int, typer.Option("-v", "--verbose", count=True, help="Show commands with all output; -vv also the evidence.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only what did not hold.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show every command that is run, and tracebacks.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="Print without colours (NO_COLOR does the same).")]
WORKLOADS = ("sleep", "helloworld-v1", "helloworld-v2")


def known_workload(given: str | None) -> str | None:
    """Check the name of a workload. Raise BadParameter for one that no lab has."""
    if given is not None and given not in WORKLOADS:
        raise typer.BadParameter(f"there is no workload called {given!r}; there are {', '.join(WORKLOADS)}")
    return given


WorkloadName = Annotated[
    str,
    typer.Argument(
        metavar="WORKLOAD",
        help="sleep, helloworld-v1 or helloworld-v2.",
        callback=known_workload,
        autocompletion=completing(*WORKLOADS),
    ),
]

#: Default of --timeout, in seconds.
PATIENCE = 20.0
#: For commands that pass on all unknown arguments to another program.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def patience(wait: bool, timeout: float | None) -> float:
    """Return how many seconds to wait for another command, from --wait and --wait-timeout."""
    return timeout if timeout is not None else math.inf if wait else 0.0


#: Completes the number of a step: there are ten, and reading the steps is not needed for that.
step_numbers = completing(*map(str, range(10)))


class Backend(str, Enum):
    """The two kinds of iptables, whose tables do not see each other."""

    NFT = "nft"
    LEGACY = "legacy"


class Legs(str, Enum):
    """Whose messages eBPF moves: only the sidecars' where an app could notice it, or the apps' too."""

    SAFE = "safe"
    ALL = "all"


LegsOption = Annotated[
    Legs | None,
    typer.Option("--legs", help="Whose messages eBPF moves: all, or safe for any app (default: as it is, else all)."),
]
PodsOption = Annotated[
    int | None,
    typer.Option(
        "--pods",
        metavar="N",
        min=3,
        max=254,
        help="Pods of the embedded lab, 3 to 254 (default: as it is, else 3): beside the walkthrough's, more of sleep.",
    ),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"merlab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print merlab's version.")
    ] = False,
) -> None:
    pass
