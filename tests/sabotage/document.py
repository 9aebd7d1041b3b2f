"""Write docs/sabotage.md, by looking with every check at every sabotage: `make sabotage`.

It takes about a quarter of a minute a row and worker; the workers have labs of their own. `MERLAB_WORKERS` says how
many there are, by default two. What is committed must be what was looked at: the document names the commit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import suite  # noqa: F401 - registers all sabotages
from saboteur import ALL, NAME, Scene, everything, mend, standing_lab, told
from table import Row, render

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "sabotage.md"


def commit() -> str:
    """Name the commit that is checked out, and say where the code differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(("git", *words), cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "src", "steps", "tests")
    return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")


def measure(name: str, numbers: range) -> list[Row]:
    """Do the sabotages with these numbers, each to a whole lab called `name`, and keep what was seen."""
    rows = []
    with standing_lab(name) as lab:
        for number in numbers:
            sabotage = ALL[number]
            mend(lab)
            scene = Scene(lab)
            with sabotage.on(scene):
                seen = everything(sabotage, scene)
            mend(lab)
            scene = Scene(lab)
            with sabotage.on(scene):
                report = told(sabotage, scene)
            cause = report.cause or str(report.error)
            rows.append(
                Row(sabotage.name, sabotage.kind, sabotage.what, sabotage.steps, seen, report.verdict.value, cause)
            )
            sys.stderr.write(f"{number + 1} of {len(ALL)}: {sabotage.name}: {report.verdict.value}\n")
    return rows


def work(place: str, number: str, of: str) -> None:
    """Measure every `of`-th sabotage from `number` on, and write the rows to `place`."""
    rows = measure(f"{NAME}{number}", range(int(number), len(ALL), int(of)))
    Path(place).write_text(json.dumps([asdict(row) for row in rows]))


def generate(workers: int) -> list[str]:
    """Measure all, side by side, and write the document; give the checks that no sabotage needs."""
    looked_at = commit()
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, str(number)) for number in range(workers)]
        running = [
            subprocess.Popen((sys.executable, __file__, str(place), str(number), str(workers)), cwd=ROOT)
            for number, place in enumerate(places)
        ]
        failed = [process.args for process in running if process.wait() != 0]
        if failed:
            raise RuntimeError(f"these workers ended badly: {failed}")
        read = [json.loads(place.read_text()) for place in places]
    rows = {row["name"]: Row(**row | {"steps": tuple(row["steps"])}) for worker in read for row in worker}
    text, useless = render([rows[sabotage.name] for sabotage in ALL], looked_at)
    DOCUMENT.write_text(text)
    return useless


if __name__ == "__main__":
    if sys.argv[1:]:
        work(*sys.argv[1:])
    elif useless := generate(int(os.environ.get("MERLAB_WORKERS", "2"))):
        sys.exit(f"no sabotage needs these checks: {', '.join(useless)}")
