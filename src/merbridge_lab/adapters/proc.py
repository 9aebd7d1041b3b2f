"""Run commands: the one way merlab does it.

Commands are argv lists with a mandatory timeout. A failure carries the command as one would paste it into a
shell and all it wrote to stderr.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sh

from merbridge_lab import interrupts
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

log = logging.getLogger(__name__)

#: A command that answers from the kernel or the file system needs no longer than this, in seconds.
QUICK = 10.0
#: How often a command that takes long is looked after, in seconds.
_LOOK_AFTER = 1.0


@dataclass(frozen=True)
class Result:
    """What a command left: its exit status and both streams, decoded."""

    command: str
    status: int
    stdout: str
    stderr: str


def pasteable(argv: Sequence[str]) -> str:
    """Give `argv` as a line for a shell."""
    return shlex.join(argv)


def foreground(argv: Sequence[str]) -> int:
    """Run `argv` on the terminal merlab was started on, until it ends; give its exit status."""
    log.debug("$ %s", pasteable(argv))
    try:
        sh.Command(argv[0])(*argv[1:], _fg=True)
    except sh.CommandNotFound as missing:
        raise LabError(f"the command {argv[0]} is not on this machine", hint="merlab doctor") from missing
    except sh.ErrorReturnCode as ended:
        return int(ended.exit_code)
    return 0


def _wait(running: sh.RunningCommand, look: Callable[[], LabError | None] | None, end: Callable[[], None]) -> None:
    """Wait for a command; call `look` between, `end` the command once that gives an error, and raise it.

    Not in a thread of its own: whoever looks asks, as everyone does, whether a signal came in, and is told only once.
    """
    while look is not None:
        try:
            running.wait(timeout=_LOOK_AFTER)
        except sh.TimeoutException:
            found = None
            with contextlib.suppress(LabError):  # what cannot be seen now is seen later, or the command says it itself
                found = look()
            if found is not None:
                end()
                raise found from None
        else:
            return
    running.wait()


def run(
    argv: Sequence[str],
    *,
    timeout: float = QUICK,
    ok: Sequence[int] = (0,),
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    look: Callable[[], LabError | None] | None = None,
) -> Result:
    """Run `argv` and wait for it, at most `timeout` seconds.

    `look` is called about once a second while it runs: once it gives an error, the command is ended and that error
    raised. Raises LabError when the program is missing, does not end in time, or ends with a
    status not in `ok`.
    """
    command = pasteable(argv)
    interrupts.checkpoint()
    log.debug("$ %s", command)
    try:
        program = sh.Command(argv[0])
    except sh.CommandNotFound as missing:
        raise LabError(
            f"the command {argv[0]} is not on this machine", hint="merlab doctor", command=command
        ) from missing
    options: dict[str, object] = {
        "_bg": True,
        "_bg_exc": False,
        # A Ctrl-C goes to the whole group of the terminal; it must not end a restore half-way.
        "_new_session": True,
        "_ok_code": list(range(256)),
        "_tty_out": False,
        "_in": stdin if stdin is not None else b"",
    }
    if env is not None:
        options["_env"] = dict(env)
    running = program(*argv[1:], **options)
    late = threading.Event()

    def end() -> None:
        late.set()
        with contextlib.suppress(OSError):
            running.kill_group()  # with what it started: nothing of it goes on writing after it

    # sh's own _timeout looks ten times a second, which would cost every quick command 100 ms.
    timer = threading.Timer(timeout, end)
    timer.daemon = True
    timer.start()
    try:
        with interrupts.cancelling(end):
            _wait(running, look, end)
    except sh.SignalException as killed:
        interrupts.checkpoint()
        if late.is_set():
            what = f"{argv[0]} did not end within {timeout:g} s"
        else:
            what = f"{argv[0]} was ended by {type(killed).__name__.removeprefix('SignalException_')}"
        raise LabError(
            what, hint="merlab doctor", command=command, stderr=killed.stderr.decode(errors="replace")
        ) from killed
    except BaseException:
        end()
        raise
    finally:
        timer.cancel()
    result = Result(
        command,
        running.exit_code,
        running.stdout.decode(errors="replace"),
        running.stderr.decode(errors="replace"),
    )
    if result.status not in ok:
        raise LabError(
            f"{argv[0]} failed with exit status {result.status}", command=command, stderr=result.stderr.strip()
        )
    return result
