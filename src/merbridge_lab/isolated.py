"""Start merlab apart from what root's environment tells Python to import.

By PYTHONPATH, or a file in the current directory (`python -m`), any module that merlab imports may come from elsewhere,
and so may compiled ones by PYTHONPYCACHEPREFIX. Where the environment holds such a word, merlab starts once more, in
the same process, with a Python that does not listen to it (-E), and with the directory that merlab itself is in, which
is where `pip install --target` puts what it needs. Where it cannot be imported so, it runs as it was called, and what
then came from elsewhere is told by `merlab verify`. A whole merlab that replaces this one cannot be told by it.
"""

from __future__ import annotations

import os
import signal
import sys

#: What decides about imports; other words of Python's environment (PYTHONUNBUFFERED) are let be.
DECIDING = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONUSERBASE",
    "PYTHONPLATLIBDIR",
    "PYTHONPYCACHEPREFIX",
    "PYTHONCASEOK",
    "PYTHONWARNINGS",  # the category of a warning is imported
    "PYTHONBREAKPOINT",
)
#: With -c, the first place of sys.path is the current directory. Given are merlab's directory and merlab's words.
_ALONE = (
    "import sys; root = sys.argv[1]; del sys.argv[:2]; sys.path[:1] = [] if root in sys.path[1:] else [root]; "
    "from merbridge_lab.isolated import alone; alone()"
)
_AS_CALLED = "import sys; del sys.argv[:1], sys.path[:1]; from merbridge_lab.cli import main; main()"


def main() -> None:
    """Run merlab; the console script."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - as few imports as can be
    is_told = any(os.environ.get(name) for name in DECIDING)
    # Of `python -m`; the directory of a console script is one where programs are installed.
    is_here = bool(sys.path) and sys.path[0] in ("", os.getcwd()) and sys.path[0] != root  # noqa: PTH109
    if sys.executable and not sys.flags.ignore_environment and (is_told or is_here):
        _replace("-E", "-c", _ALONE, root, *sys.argv)
    _run()


def alone() -> None:
    """Run merlab where the environment has no say; or with it, where it cannot be imported otherwise."""
    try:
        import merbridge_lab.cli  # noqa: F401
    except ImportError:
        _replace("-c", _AS_CALLED, *sys.argv)
    for name in DECIDING:
        os.environ.pop(name, None)
    _run()


def _run() -> None:
    from merbridge_lab.cli import main

    main()


def _replace(*words: str) -> None:
    # Python ignores these, and what is ignored stays so: the next one could not tell that nobody had asked for it.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *words])  # noqa: S606 - an argv, not a line for a shell
