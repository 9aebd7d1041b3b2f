"""Start merlab isolated from what root's environment tells Python to import.

PYTHONPATH, or a file in the current directory (`python -m`), can replace any module that merlab imports.
PYTHONPYCACHEPREFIX can replace compiled modules. If the environment holds such a variable, merlab executes itself again
in the same process, with a Python that ignores it (-E). It adds the directory that contains merlab, where `pip install
--target` puts merlab's dependencies. If merlab cannot be imported this way, it runs as it was called; `merlab verify`
then reports what was imported from elsewhere. merlab cannot detect a complete merlab that replaces this one.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

#: The variables that decide about imports; other variables of Python (PYTHONUNBUFFERED) are left alone.
DECIDING = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONUSERBASE",
    "PYTHONPLATLIBDIR",
    "PYTHONPYCACHEPREFIX",
    "PYTHONCASEOK",
    "PYTHONWARNINGS",  # Python imports the category of a warning
    "PYTHONBREAKPOINT",
)
#: With -c, the first entry of sys.path is the current directory. The arguments are merlab's directory and merlab's
#: arguments.
_ALONE = (
    "import sys; root = sys.argv[1]; del sys.argv[:2]; sys.path[:1] = [] if root in sys.path[1:] else [root]; "
    "from merbridge_lab.isolated import alone; alone()"
)
_AS_CALLED = "import sys; del sys.argv[:1], sys.path[:1]; from merbridge_lab.cli import main; main()"


def main() -> None:
    """Run merlab; the console script."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - as few imports as can be
    is_told = any(os.environ.get(name) for name in DECIDING)
    # From `python -m`. For a console script, the directory is one where programs are installed.
    is_here = bool(sys.path) and sys.path[0] in ("", _here()) and sys.path[0] != root
    if sys.executable and not sys.flags.ignore_environment and (is_told or is_here):
        _replace("-E", "-c", _ALONE, root, *sys.argv)
    _run()


def _here() -> str:
    """Return the current directory; "" if it was deleted or cannot be read."""
    try:
        return os.getcwd()  # noqa: PTH109
    except OSError:
        return ""


def alone() -> None:
    """Run merlab isolated from the environment; or with it, if merlab cannot be imported otherwise."""
    try:
        import merbridge_lab.cli  # noqa: F401
    except ImportError:
        _replace("-c", _AS_CALLED, *sys.argv)
    for name in DECIDING:
        os.environ.pop(name, None)
    _run()


#: How many objects may be created, and not deleted, before garbage is looked for; Python's own number is 700.
_GARBAGE_AFTER = 10_000


def _open_standard_streams() -> None:
    """Connect what the caller closed of stdin, stdout and stderr (`>&-`) to nothing: else other files would be them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _run() -> None:
    _open_standard_streams()
    # Nothing of what is imported is garbage, and a command ends before there is much: it need not look for it so often.
    gc.disable()
    from merbridge_lab.cli import main

    gc.freeze()
    gc.set_threshold(_GARBAGE_AFTER, 10, 10)
    gc.enable()
    main()


def _replace(*words: str) -> None:
    # Python ignores these signals, and a program that it executes inherits that: the next Python could not know that
    # nobody asked for it.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *words])  # noqa: S606 - an argv, not a line for a shell
