"""One call of merlab: its console, its lab, and the handling of every error in it."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import sys
import traceback
from typing import TYPE_CHECKING

import typer

from merbridge_lab import exit_codes, hints, shortage, signals
from merbridge_lab.errors import LabError, ShortageError, UsageError
from merbridge_lab.evidence import Verdict
from merbridge_lab.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Self

    from merbridge_lab.labs.options import Options
    from merbridge_lab.labs.selection import Driver
    from merbridge_lab.managed_lab import ManagedLab
    from merbridge_lab.model import Step
    from merbridge_lab.report import Report


class _Printable(logging.Formatter):
    """Makes logged text harmless for a terminal: command lines may contain text from pods."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class Session:
    """Converts errors into sentences, JSON and exit statuses; used around the body of every command."""

    def __init__(
        self,
        command: str,
        *,
        as_json: bool = False,
        verbose: int = 0,
        quiet: bool = False,
        debug: bool = False,
        no_color: bool = False,
        as_events: bool = False,
        brief: bool = False,
        terse: bool = False,
    ) -> None:
        from merbridge_lab.console import Console

        if as_events and not as_json:
            raise typer.BadParameter("--events goes with --json")
        self.command = command
        self.as_json = as_json
        self.debug = debug
        self.lab = ""
        self.report: Report | None = None
        #: Why the lab that is up cannot be read.
        self.barred: LabError | None = None
        self.console = Console(
            as_json=as_json,
            verbosity=-1 if quiet else verbose,
            color=not no_color and not os.environ.get("NO_COLOR"),
            as_events=as_events,
            brief=brief,
            terse=terse,
        )
        if debug:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(_Printable())
            logging.basicConfig(handlers=[handler])
            logging.getLogger("merbridge_lab").setLevel(logging.DEBUG)

    def __enter__(self) -> Self:
        signals.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        try:
            self._end(error)
        finally:
            self.console.end()
            hints.mean("", asked=False)

    def _end(self, error: BaseException | None) -> None:
        self.console.close()
        if isinstance(error, (typer.BadParameter, SystemExit)):
            return
        if error is None or isinstance(error, typer.Exit):
            self._told()
            return
        if self.debug and not isinstance(error, signals.Interrupted):
            sys.stderr.write(printable("".join(traceback.format_exception(error))))
        found = shortage.explained(error)
        if found is not None:
            self._fail(found)
            raise typer.Exit(exit_codes.USAGE if isinstance(found, UsageError) else exit_codes.CANNOT) from None
        if isinstance(error, signals.Interrupted):
            self._fail(LabError(f"interrupted by {error}", hint="merlab status", id="interrupted"))
            raise typer.Exit(exit_codes.SIGNALLED + error.signum) from None
        if isinstance(error, Exception):
            self._fail(
                LabError(
                    f"internal error: {type(error).__name__}: {error};"
                    " please report it with what the command below prints",
                    hint=shlex.join(["merlab", self.command, *self._rest(), "--debug"]),
                    id="internal",
                )
            )
            raise typer.Exit(exit_codes.DEFECT) from None

    def _told(self) -> None:
        """Check that the outcome reached its reader: on a terminal that is gone, or a disk that is full, it did not."""
        if signals.hung_up():
            raise typer.Exit(exit_codes.SIGNALLED + signal.SIGHUP) from None
        if self.console.lost is not None:
            lacking = shortage.of(self.console.lost)
            self.console.error(
                LabError(
                    f"not all that merlab prints could be written: {self.console.lost.strerror}",
                    hint=lacking.hint if lacking else None,
                    id="machine.full",
                )
            )
            raise typer.Exit(exit_codes.CANNOT) from None

    def _fail(self, error: LabError) -> None:
        if not self.as_json:
            self.console.error(error)
            return
        from merbridge_lab.report import Report

        report = self.report or Report(self.command, self.lab)
        report.error = error
        self.console.json(report.to_json())

    def _rest(self) -> list[str]:
        """Return what was typed after the command."""
        return sys.argv[2:] if sys.argv[1:2] == [self.command] else []

    def driver(self, asked: str | None, options: Options | None = None) -> Driver:
        """Pick the lab, and print which and why. Raise BadParameter for `options` that it does not have."""
        from merbridge_lab.labs import selection

        driver, why = selection.pick(asked)
        if options is not None and options.said() and not selection.tell(driver, options):
            raise typer.BadParameter(f"{options.said()[0]} is for labs on a cluster, but this is the {driver.name} lab")
        self.lab = driver.name
        hints.mean(driver.name, asked=why in ("asked for", "MERLAB_LAB"), context=driver.context)
        self.console.note(f"lab: {driver.name} ({why})")
        return driver

    @contextlib.contextmanager
    def changing(
        self,
        asked: str | None,
        *,
        wait: float,
        keep: bool = False,
        backend: str | None = None,
        legs: str | None = None,
        pods: int | None = None,
        options: Options | None = None,
    ) -> Iterator[ManagedLab]:
        """Pick a lab and lock it for the duration of the block; wait up to `wait` seconds for the lock."""
        from merbridge_lab import lock

        driver = self.driver(asked, options)
        driver.require_able()
        again = shlex.join(["merlab", self.command, "--wait", *self._rest()])
        with contextlib.ExitStack() as stack:
            if wait:
                self.console.awaits(f"the lab {driver.lab_name} to be free")
            stack.enter_context(lock.held(driver.lab_name, self.command, docker=driver.docker, wait=wait, again=again))
            self.console.close()
            yield stack.enter_context(driver.open(keep=keep, backend=backend, legs=legs, pods=pods))

    @contextlib.contextmanager
    def looking(self, asked: str | None, *, up: bool = True, offline: bool = False) -> Iterator[ManagedLab]:
        """Pick a lab to read, without changing it; with `up`, one that is not up is an error.

        With `offline`, a user who may not read the lab gets it all the same, for what is known without reading it;
        `barred` then tells what prevents the user from reading it.
        """
        driver = self.driver(asked)
        if up or driver.is_up():
            try:
                driver.require_able()
            except LabError as error:
                if not offline:
                    raise
                self.barred = error
        with driver.open() as lab:
            if up:
                lab.require_up()
            yield lab

    def finish(self, lab: ManagedLab, report: Report) -> None:
        """Store the report, print the verdict and exit."""
        if isinstance(report.error, ShortageError):
            report.error.what += self._in_place(lab, report)
        told = report.to_json()
        lab.keep_report(told)
        if self.as_json:
            self.console.json(told)
        else:
            self.console.verdict(report)
            for sentence in report.not_compared:
                self.console.note(sentence)
        raise typer.Exit(exit_codes.of(report.verdict))

    @staticmethod
    def _in_place(lab: ManagedLab, report: Report) -> str:
        """Describe the state that a run which ran out of something has left, and what to do about it then."""
        try:
            if not lab.exists:
                return "; nothing is in place"
        except (LabError, OSError) as error:
            return f"; what is in place cannot be determined now ({error})"
        held = [step.step.number for step in report.steps if step.verdict is Verdict.PASS]
        as_far = f" as far as step {held[-1]}" if held and report.command == "up" else ""
        return f"; the lab is in place{as_far} (merlab up goes on from there, merlab down removes it)"


def numbers(text: str) -> range:
    """Parse "N" or "N..M". Raise BadParameter for anything else than steps."""
    from merbridge_lab.loader import steps

    first, dots, last = text.partition("..")
    try:
        found = range(int(first), int(last if dots else first) + 1)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a step (9) nor a range of steps (5..9)") from None
    if not found or found[0] < 0 or found[-1] >= len(steps()):
        raise typer.BadParameter(f"{text!r}: the steps are 0 to {len(steps()) - 1}")
    return found


def selected(wanted: Sequence[int]) -> list[Step]:
    """Return the steps with these numbers."""
    from merbridge_lab.loader import steps

    return [step for step in steps() if step.number in wanted]
