"""The command line: parse, pick a lab, run, exit status. Nothing else."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merbridge_lab import __version__, exits, interrupts
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Self

    from merbridge_lab.drivers import Driver
    from merbridge_lab.model import Step
    from merbridge_lab.report import Report

app = typer.Typer(
    name="merlab",
    help="A walkthrough of eBPF in a service mesh that proves each of its claims.\n\n"
    "Start with `merlab up`, then `merlab step 9`, `merlab verify`, `merlab down`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
LabName = Annotated[
    str | None,
    typer.Option(
        "--lab",
        metavar="auto|embedded|kind|cluster",
        help="Which lab; by default the one that is up, else MERLAB_LAB, else auto.",
    ),
]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="S", min=0.1, help="How long a check may take to come true, seconds.")
]
Verbose = Annotated[int, typer.Option("-v", "--verbose", count=True, help="Show evidence and all output.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only what did not hold.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show every command that is run, and tracebacks.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colours (NO_COLOR does the same).")]

PATIENCE = 20.0


class Backend(str, Enum):
    """The two kinds of iptables, whose tables do not see each other."""

    NFT = "nft"
    LEGACY = "legacy"


class _Run:
    """One call of merlab: its console, and what becomes of whatever goes wrong in it."""

    def __init__(
        self, command: str, *, as_json: bool = False, verbose: int = 0, quiet: bool = False,
        debug: bool = False, no_color: bool = False,
    ) -> None:  # fmt: skip
        from merbridge_lab.console import Console

        self.command = command
        self.as_json = as_json
        self.debug = debug
        self.lab = ""
        self.report: Report | None = None
        self.console = Console(
            as_json=as_json,
            verbosity=-1 if quiet else verbose,
            color=not no_color and not os.environ.get("NO_COLOR"),
        )
        if debug:
            logging.basicConfig(stream=sys.stderr, format="%(message)s")
            logging.getLogger("merbridge_lab").setLevel(logging.DEBUG)

    def __enter__(self) -> Self:
        interrupts.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        self.console.close()
        if error is None or isinstance(error, (typer.Exit, typer.BadParameter, SystemExit)):
            return
        if self.debug and not isinstance(error, interrupts.Interrupted):
            traceback.print_exception(error)
        if isinstance(error, LabError):
            self._fail(error)
            raise typer.Exit(exits.CANNOT) from None
        if isinstance(error, interrupts.Interrupted):
            self._fail(LabError(f"interrupted by {error}", hint="merlab status says what is in place"))
            raise typer.Exit(exits.SIGNALLED + error.signum) from None
        if isinstance(error, Exception):
            self._fail(
                LabError(
                    f"a defect of merlab: {type(error).__name__}: {error}",
                    hint=f"please report it with the output of: merlab {self.command} --debug",
                )
            )
            raise typer.Exit(exits.DEFECT) from None

    def _fail(self, error: LabError) -> None:
        if not self.as_json:
            self.console.error(error)
            return
        from merbridge_lab.report import Report

        report = self.report or Report(self.command, self.lab)
        report.error = error
        self.console.json(report.to_json())

    def driver(self, asked: str | None) -> Driver:
        """Pick the lab, and say which and why."""
        from merbridge_lab import drivers

        driver, why = drivers.pick(asked)
        self.lab = driver.name
        self.console.note(f"lab: {driver.name} ({why})")
        return driver

    def finish(self, report: Report) -> None:
        """Print the verdict and exit."""
        if self.as_json:
            self.console.json(report.to_json())
        else:
            self.console.verdict(report)
        raise typer.Exit(exits.of(report.verdict))


@contextlib.contextmanager
def _changing(run: _Run, asked: str | None, *, keep: bool = False, backend: str | None = None) -> Iterator[Any]:
    """Pick a lab and have it to oneself for the length of the block."""
    from merbridge_lab import lock

    driver = run.driver(asked)
    driver.require_able()
    with lock.held(), driver.open(keep=keep, backend=backend) as lab:
        yield lab


def _numbers(text: str) -> range:
    """Read "N" or "N..M"."""
    from merbridge_lab.loader import steps

    first, dots, last = text.partition("..")
    try:
        numbers = range(int(first), int(last if dots else first) + 1)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a step (9) nor a range of steps (5..9)") from None
    if not numbers or numbers[0] < 0 or numbers[-1] >= len(steps()):
        raise typer.BadParameter(f"{text!r}: the steps are 0 to {len(steps()) - 1}")
    return numbers


def _selected(numbers: Sequence[int]) -> list[Step]:
    from merbridge_lab.loader import steps

    return [step for step in steps() if step.number in numbers]


@app.command()
def up(
    lab: LabName = None,
    until: Annotated[str | None, typer.Option("--until", metavar="N", help="Stop after step N.")] = None,
    iptables: Annotated[
        Backend | None, typer.Option("--iptables", help="In which tables Istio's rules are loaded; by default nft.")
    ] = None,
    json: JsonFlag = False, timeout: Timeout = PATIENCE, verbose: Verbose = 0, quiet: Quiet = False,
    debug: Debug = False, no_color: NoColor = False,
) -> None:  # fmt: skip
    """Stand the whole demo up: steps 0 to 9, each verified.

    On a healthy lab it changes nothing that lasts; after a failure it goes on from what is missing.

    Examples:  merlab up    merlab up --until 3    merlab up --lab embedded --json
    """
    with _Run("up", as_json=json, verbose=verbose, quiet=quiet, debug=debug, no_color=no_color) as run:
        numbers = range(_numbers(until)[-1] + 1) if until else None
        from merbridge_lab.loader import steps
        from merbridge_lab.report import Report
        from merbridge_lab.runner import Runner

        with _changing(run, lab, backend=iptables.value if iptables else None) as chosen:
            run.report = Report("up", chosen.name)
            chosen.mend()
            Runner(chosen, run.console, patience=timeout).run(
                run.report, steps() if numbers is None else _selected(numbers)
            )
        run.finish(run.report)


@app.command()
def step(
    number: Annotated[str, typer.Argument(metavar="N|N..M", help="A step, or a range of steps.")],
    lab: LabName = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the rules flushed after step 9, to play with.")] = False,
    json: JsonFlag = False, timeout: Timeout = PATIENCE, verbose: Verbose = 0, quiet: Quiet = False,
    debug: Debug = False, no_color: NoColor = False,
) -> None:  # fmt: skip
    """Rerun one step, or a range, with its checks, on the lab that is up.

    Examples:  merlab step 9    merlab step 5..9    merlab step 9 --keep
    """
    with _Run("step", as_json=json, verbose=verbose, quiet=quiet, debug=debug, no_color=no_color) as run:
        numbers = _numbers(number)
        if keep and numbers[-1] != 9:  # noqa: PLR2004 - the step that flushes
            raise typer.BadParameter("--keep goes with step 9, which flushes the rules")
        from merbridge_lab.report import Report
        from merbridge_lab.runner import Runner

        with _changing(run, lab, keep=keep) as chosen:
            if numbers[0] > 0:
                chosen.require_up()
            run.report = Report("step", chosen.name)
            Runner(chosen, run.console, patience=timeout).run(run.report, _selected(numbers))
        if keep:
            run.console.note("the rules of sleep are left flushed: merlab restore puts them back")
        run.finish(run.report)


@app.command()
def verify(
    lab: LabName = None,
    json: JsonFlag = False, timeout: Timeout = PATIENCE, verbose: Verbose = 0, quiet: Quiet = False,
    debug: Debug = False, no_color: NoColor = False,
) -> None:  # fmt: skip
    """Confirm, with proof, that requests succeed with the rules flushed; leave everything as it was.

    Examples:  merlab verify    merlab verify --json    merlab verify -v
    """
    with _Run("verify", as_json=json, verbose=verbose, quiet=quiet, debug=debug, no_color=no_color) as run:
        from merbridge_lab.report import Report
        from merbridge_lab.runner import Runner

        with _changing(run, lab) as chosen:
            chosen.require_up()
            run.report = Report("verify", chosen.name)
            runner = Runner(chosen, run.console, patience=timeout)
            runner.prove(run.report, standing=_selected(range(1, 4)), steps=_selected(range(8, 10)))
        run.finish(run.report)


@app.command()
def restore(
    lab: LabName = None,
    json: JsonFlag = False, verbose: Verbose = 0, quiet: Quiet = False, debug: Debug = False, no_color: NoColor = False,
) -> None:  # fmt: skip
    """Put flushed rules back, after `step 9 --keep` or after a crash.

    Example:  merlab restore
    """
    with _Run("restore", as_json=json, verbose=verbose, quiet=quiet, debug=debug, no_color=no_color) as run:
        with _changing(run, lab) as chosen:
            restored = chosen.restore()
        if json:
            run.console.json({"schema": 1, "lab": run.lab, "restored": restored})
        elif not restored:
            run.console.say("nothing is flushed")
        for name in () if json else restored:
            run.console.say(f"the nat rules of {name} are back")


@app.command()
def down(
    lab: LabName = None,
    json: JsonFlag = False, timeout: Timeout = PATIENCE, verbose: Verbose = 0, quiet: Quiet = False,
    debug: Debug = False, no_color: NoColor = False,
) -> None:  # fmt: skip
    """Remove all that merlab made, also after a crash; nothing to remove is a success.

    Example:  merlab down
    """
    with _Run("down", as_json=json, verbose=verbose, quiet=quiet, debug=debug, no_color=no_color) as run:
        from merbridge_lab.loader import steps
        from merbridge_lab.runner import undo

        with _changing(run, lab) as chosen:
            removed = chosen.exists
            with interrupts.shielded():
                try:
                    if removed:
                        undo(chosen, steps())
                finally:
                    chosen.remove(timeout)
        if json:
            run.console.json({"schema": 1, "lab": run.lab, "removed": removed})
        else:
            run.console.say("the lab is gone" if removed else "there was nothing to remove")


@app.command()
def status(
    lab: LabName = None, json: JsonFlag = False, debug: Debug = False, no_color: NoColor = False,
) -> None:  # fmt: skip
    """Say which lab is up, its pods, what intercepts, and what is flushed right now.

    Example:  merlab status --json
    """
    with _Run("status", as_json=json, debug=debug, no_color=no_color, quiet=True) as run:
        driver = run.driver(lab)
        if driver.is_up():
            driver.require_able()
        with driver.open() as chosen:
            described = chosen.describe()
        if json:
            run.console.json(described)
        else:
            run.console.status(described)


@app.command()
def doctor(
    lab: LabName = None, json: JsonFlag = False, debug: Debug = False, no_color: NoColor = False,
) -> None:  # fmt: skip
    """Say what this machine offers and lacks: a line each, with the command that mends it.

    Example:  merlab doctor
    """
    with _Run("doctor", as_json=json, debug=debug, no_color=no_color, quiet=True) as run:
        driver = run.driver(lab)
        requirements = driver.requirements()
        able = not any(requirement.verdict == "fail" for requirement in requirements)
        if json:
            checks = [
                {"name": r.name, "verdict": r.verdict, "found": r.found, "needed": r.needed, "hint": r.hint}
                for r in requirements
            ]
            run.console.json({"schema": 1, "lab": driver.name, "able": able, "checks": checks})
        else:
            run.console.requirements(requirements)
            run.console.say(f"this machine {'can' if able else 'cannot'} run the {driver.name} lab")
        raise typer.Exit(exits.HELD if able else exits.CANNOT)


@app.command()
def steps(
    number: Annotated[str | None, typer.Argument(metavar="N", help="Tell all about one step.")] = None,
    lab: LabName = None, json: JsonFlag = False, debug: Debug = False, no_color: NoColor = False,
) -> None:  # fmt: skip
    """List the steps with their state, or tell one step's story and the commands a person would type for it.

    Examples:  merlab steps    merlab steps 9
    """
    with _Run("steps", as_json=json, debug=debug, no_color=no_color, quiet=True) as run:
        chosen_numbers = _numbers(number) if number else None
        from merbridge_lab.loader import steps as all_steps

        driver = run.driver(lab)
        with driver.open() as chosen:
            if chosen_numbers is None:
                states = chosen.states(all_steps())
                if json:
                    rows = [
                        {"number": s.number, "title": s.title, "state": state}
                        for s, state in zip(all_steps(), states, strict=True)
                    ]
                    run.console.json({"schema": 1, "lab": driver.name, "steps": rows})
                else:
                    run.console.steps(list(zip(all_steps(), states, strict=True)))
                return
            told = [(s, list(s.commands(chosen))) for s in _selected(chosen_numbers)]
        if json:
            run.console.json(
                {
                    "schema": 1,
                    "lab": driver.name,
                    "steps": [
                        {
                            "number": s.number,
                            "title": s.title,
                            "narration": s.narration,
                            "commands": commands,
                            "checks": [check.name for check in s.verify + s.witness],
                        }
                        for s, commands in told
                    ],
                }
            )
            return
        for s, commands in told:
            run.console.narrate(s, commands)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def exec(  # noqa: A001 - the name of the command
    context: typer.Context,
    workload: Annotated[str, typer.Argument(help="sleep, helloworld-v1 or helloworld-v2.")],
    lab: LabName = None, debug: Debug = False,
) -> None:  # fmt: skip
    """Run a command as the workload's app: its network, its names, its user. Its exit status is passed on.

    Example:  merlab exec sleep -- curl -s helloworld:5000/hello
    """
    with _Run("exec", debug=debug, quiet=True) as run:
        if not context.args:
            raise typer.BadParameter("what should run? for example: merlab exec sleep -- curl -s helloworld:5000/hello")
        driver = run.driver(lab)
        driver.require_able()
        with driver.open() as chosen:
            chosen.require_up()
            argv = chosen.workload(workload).app_argv(context.args)
        os.execvp(argv[0], argv)  # noqa: S606 - the command takes merlab's place, terminal, signals and all


def _later(name: str, instead: str) -> None:
    @app.command(name, hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def planned() -> None:
        with _Run(name) as run:
            run.command = name
            raise LabError(f"merlab {name} is planned, but not built yet", hint=instead)


_later("shell", "merlab exec sleep -- sh")
_later("trace", "merlab step 5")
_later("manifests", "merlab steps 2")
_later("sysdump", "merlab status --json; merlab doctor --json")
_later("compare", "merlab verify -v")
_later("agent", "merlab up --lab embedded")
_later("bench", "merlab verify -v")


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


def main() -> None:
    """Run merlab; the console script."""
    # The lab's tools are the system's; `su` without a dash leaves their directories out of PATH.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    app()
