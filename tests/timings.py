"""How long merlab takes on this machine, and how much memory: `make timings`. Prints a table, asserts nothing.

Every number is the wall clock time of a whole command, as a person waits for it, beside its goal.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from tests.merlab_cli import MERLAB

#: The reference for the time of `merlab --help`: an application of typer that has nothing to do.
EMPTY = """\
import typer
app = typer.Typer()
@app.command()
def main() -> None:
    pass
app()
"""


@dataclass
class Measured:
    """Several runs of one command: seconds each, the largest peak of merlab's own memory, the last result."""

    what: str
    goal: str
    seconds: list[float] = field(default_factory=list)
    peak: float = 0.0
    status: int = 0

    def run(self, argv: list[str], environment: dict[str, str] | None = None) -> None:
        """Run the command once, with its output in a file that nobody reads."""
        with tempfile.TemporaryFile() as output:
            begun = time.monotonic()
            running = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
            _, waited, usage = os.wait4(running.pid, 0)
            self.seconds.append(time.monotonic() - begun)
        # Popen must know it, or it would complain that nobody waited.
        running.returncode = self.status = os.waitstatus_to_exitcode(waited)
        # ru_maxrss is the largest of the process and of those children that it waited for, in KiB.
        self.peak = max(self.peak, usage.ru_maxrss / 1024)


def measure(what: str, goal: str, argv: list[str], times: int = 1) -> Measured:
    """Run a command several times."""
    measured = Measured(what, goal)
    for _ in range(times):
        measured.run(argv)
    return measured


def help_beside_empty(times: int) -> list[Measured]:
    """Measure `--help` and the empty application alternately, so that a busy machine is equally busy for both."""
    ours, empty = Measured("merlab --help", "<= 1.3 x an empty typer app"), Measured("an empty typer app's --help", "")
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(EMPTY)
        script.flush()
        for _ in range(times):
            ours.run([MERLAB, "--help"])
            empty.run([sys.executable, script.name, "--help"])
    ratio = statistics.median(ours.seconds) / statistics.median(empty.seconds)
    ours.goal = f"{ratio:.2f} x an empty typer app, goal 1.3"
    return [ours, empty]


def lab(times: int) -> list[Measured]:
    """Measure the embedded lab's life, twice up from nothing: only the first has cold caches."""
    up, down = [MERLAB, "up", "--lab", "embedded"], [str(MERLAB), "down"]
    first_down = measure("down, whatever there was", "", down)
    cold = Measured("up, from nothing", "<= 15 s, goal 5 s")
    cold.run(up)
    again = measure("up, on a healthy lab", "<= 6 s", up, times)
    step = measure("step 9", "<= 2 s", [MERLAB, "step", "9"], times)
    verify = measure("verify", "<= 5 s", [MERLAB, "verify"], times)
    last_down = measure("down", "<= 1 s", down)
    nothing = measure("down, nothing there", "", down)
    cold.run(up)
    last_down.run(down)
    return [first_down, cold, again, step, verify, last_down, nothing]


def show(console: Console, rows: list[Measured]) -> None:
    """Print the table."""
    table = Table(title=f"merlab on Linux {os.uname().release}, {os.cpu_count()} processors")
    for name in ("command", "median s", "least", "most", "runs", "peak MB", "exit", "goal"):
        table.add_column(name, justify="left" if name in {"command", "goal"} else "right")
    for row in rows:
        median, least, most = statistics.median(row.seconds), min(row.seconds), max(row.seconds)
        figures = (f"{median:.2f}", f"{least:.2f}", f"{most:.2f}", str(len(row.seconds)), f"{row.peak:.0f}")
        table.add_row(row.what, *figures, str(row.status), row.goal)
    console.print(table)
    console.print("Peak MB is the larger of merlab and of any one command it waited for; the goal is 250.")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description="Measure merlab; the lab that is up is taken down.")
    parser.add_argument("--times", type=int, default=3, help="how often each command is run")
    parser.add_argument("--no-lab", action="store_true", help="only what needs no lab")
    options = parser.parse_args()
    rows = help_beside_empty(max(options.times, 5))
    rows.append(measure("doctor", "", [MERLAB, "doctor"], options.times))
    rows.append(measure("steps", "", [MERLAB, "steps"], options.times))
    if not options.no_lab:
        rows += lab(options.times)
    show(Console(width=None if sys.stdout.isatty() else 120), rows)


if __name__ == "__main__":
    main()
