"""Run commands: the only way in merlab.

Commands are argv lists with a mandatory timeout. A failure contains the command as one would paste it into a shell and
everything that it wrote to stderr. It needs no thread, and leaves no descriptor open if it fails: a command that
restores rules must work on a machine that is short of both.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shlex
import signal
import subprocess
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab import shortage, signals
from merbridge_lab.adapters import system_tools
from merbridge_lab.errors import LabError
from merbridge_lab.polling import limit, poll_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import NoReturn

log = logging.getLogger(__name__)

#: Timeout of a command that answers from the kernel or the file system, in seconds.
QUICK = 10.0
#: How often a command that takes long is checked, in seconds.
_LOOK_AFTER = 1.0
#: How long a cleanup tries to start a command if no process can be created now, in seconds.
_ROOM = 5.0
#: How long the pipes of a killed command are read: its children may have left its session, and may hold them.
_LAST_WORDS = 1.0
#: The signals that Python ignores, and that its children ignore, too, unless told otherwise (signal(7): ignored stays
#: ignored).
_PYTHONS_OWN = (signal.SIGPIPE, signal.SIGXFSZ)


@dataclass(frozen=True)
class Result:
    """The result of a command: its exit status and both streams, decoded."""

    command: str
    status: int
    stdout: str
    stderr: str


def pasteable(argv: Sequence[str]) -> str:
    """Return `argv` as a line for a shell."""
    return shlex.join(argv)


def foreground(argv: Sequence[str]) -> int:
    """Run `argv` on the terminal merlab was started on, until it ends; return its exit status as a shell has it.

    Its signals are as merlab was started with them: SIGPIPE ends it, and what was ignored before (nohup) still is.
    """
    import sh  # for this alone: it takes longer to load than most commands take to run

    log.debug("$ %s", pasteable(argv))
    program = _find(argv[0], pasteable(argv))
    found = {number: signal.signal(number, signal.SIG_DFL) for number in _PYTHONS_OWN}
    try:
        sh.Command(program)(*argv[1:], _fg=True)
    except sh.ErrorReturnCode as ended:
        status = int(ended.exit_code)
        return status if status >= 0 else 128 - status
    except OSError as error:
        raise _cannot_start(argv[0], error) from error
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)
    return 0


def replace(argv: Sequence[str]) -> NoReturn:
    """Replace merlab by `argv`, with its terminal, its process and the signals it was started with. Raises LabError."""
    program = _find(argv[0], pasteable(argv))
    signals.give_back()
    try:
        os.execv(program, [program, *argv[1:]])  # noqa: S606 - an argv, not a line for a shell
    except OSError as error:
        raise _cannot_start(argv[0], error) from error


def _find(name: str, command: str) -> str:
    program = system_tools.find(name)
    if program is None:
        raise LabError(
            f"the command {name} is not on this machine", hint="merlab doctor", command=command, id="tool.missing"
        )
    return program


def _cannot_start(name: str, error: OSError) -> LabError:
    return shortage.of(error) or LabError(
        f"{name} cannot be started: {error.strerror}", hint="merlab doctor", id="tool.failed"
    )


def _start(
    argv: Sequence[str], *, stdin: str | None, env: Mapping[str, str] | None, folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own.

    A Ctrl-C goes to the whole group of the terminal, and must not end a restore midway. If no process can be created, a
    cleanup waits until it is possible: it restores rules. Raises OSError.
    """
    wrong: list[OSError] = []

    def start() -> subprocess.Popen[bytes] | None:
        try:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=env,
                cwd=folder,
                start_new_session=True,
            )
        except OSError as error:
            wrong.append(error)
            if error.errno in (errno.EAGAIN, errno.ENOMEM) and signals.is_shielded():
                return None
            raise

    process = poll_until(start, timeout=_ROOM, awaiting=f"room for a process: {argv[0]}")
    if process is None:
        raise wrong[-1]
    return process


def run(
    argv: Sequence[str],
    *,
    timeout: float = QUICK,
    ok: Sequence[int] = (0,),
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
    look: Callable[[], LabError | None] | None = None,
) -> Result:
    """Run `argv`, in `folder` if it is given, and wait for it, at most `timeout` seconds.

    `look` is called about once a second while it runs; if it returns an error, the command is ended and that error
    raised. Raise LabError if the program is missing, cannot be started, does not end in time, or ends with a status
    that is not in `ok`.
    """
    command = pasteable(argv)
    signals.checkpoint()
    log.debug("$ %s", command)
    program = _find(argv[0], command)
    timeout = limit(timeout)
    deadline = time.monotonic() + timeout
    try:
        process = _start([program, *argv[1:]], stdin=stdin, env=system_tools.environment(argv[0], env), folder=folder)
    except OSError as error:
        raise _cannot_start(argv[0], error) from error
    ending: list[str] = []

    def end(why: str = "") -> None:
        ending.append(why)
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)  # with its children: nothing of it continues to write afterwards

    with process:
        try:
            with signals.cancelling(end):
                out, err = _read(process, stdin, deadline, look, end)
        except BaseException:
            end()
            raise
    # The end of the process, whoever caused it, is detected here, and not in another thread: a signal is reported only
    # once, to whoever waits.
    if process.returncode < 0 or any(ending):
        signals.checkpoint()
        by = signal.Signals(-process.returncode).name if process.returncode < 0 else ""
        what = f"{argv[0]} did not end within {timeout:g} s" if any(ending) else f"{argv[0]} was ended by {by}"
        raise LabError(
            what, hint="merlab doctor", command=command, stderr=err.decode(errors="replace"), id="tool.failed"
        )
    result = Result(command, process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))
    if result.status not in ok:
        raise LabError(
            f"{argv[0]} failed with exit status {result.status}",
            command=command,
            stderr=result.stderr.strip(),
            id="tool.failed",
        )
    return result


class Beside:
    """A Python process of merlab's that runs in parallel, without a thread, and prints a few lines, read at the end.

    It is ended when nobody holds this object any more, or merlab ends. Raise LabError if it cannot be started.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._command = pasteable(argv)
        log.debug("$ %s &", self._command)
        try:
            self._process = _start(argv, stdin=None, env=system_tools.of_merlab())
        except OSError as error:
            raise _cannot_start(argv[0], error) from error
        self._end = weakref.finalize(self, _end, self._process)

    def result(self, timeout: float) -> Result:
        """Wait until it ends, at most `timeout` seconds; the caller judges its exit status. Raises LabError."""
        out, err = _read(
            self._process, None, time.monotonic() + limit(timeout), None, lambda _why: _kill(self._process)
        )
        return Result(self._command, self._process.returncode or 0, out.decode(), err.decode(errors="replace"))


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None and process.poll() is None:
        _kill(process)
    with process:  # waits for it, and closes its pipes
        pass


def _read(
    process: subprocess.Popen[bytes],
    stdin: str | None,
    deadline: float,
    look: Callable[[], LabError | None] | None,
    end: Callable[[str], None],
) -> tuple[bytes, bytes]:
    """Return what a command prints until it ends, or is ended at its timeout; raise what `look` returns meanwhile."""
    given = stdin.encode() if stdin is not None else None
    while (left := deadline - time.monotonic()) > 0:
        try:
            return process.communicate(given, timeout=left if look is None else min(left, _LOOK_AFTER))
        except subprocess.TimeoutExpired:
            given = None  # the input is already being sent
            found = None
            if look is not None:
                # What is not visible now becomes visible later, or the command reports it itself.
                with contextlib.suppress(LabError):
                    found = look()
            if found is not None:
                raise found from None
    end("late")
    try:
        return process.communicate(given, timeout=_LAST_WORDS)
    except subprocess.TimeoutExpired as still:
        return still.stdout or b"", still.stderr or b""
