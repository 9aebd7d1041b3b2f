"""Write docs/sabotage.md, by evaluating every check at every sabotage: `make sabotage`.

It takes about a quarter of a minute per row and worker; the workers have separate labs. `MERLAB_WORKERS` sets their
number; the default is two. Rows are stored in build/sabotage, each with the commit that was measured, so that an
interrupted run continues where it was. Without that folder (make clean) all are measured again. The document names the
commits.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import suite  # noqa: F401 - registers all sabotages
from saboteur import ALL, NAME, Scene, everything, mend, standing_lab, told
from table import Row, render, title

if TYPE_CHECKING:
    from saboteur import Sabotage

    from merbridge_lab.labs.embedded.managed_lab import ManagedEmbeddedLab

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "sabotage.md"


def commit() -> str:
    """Return the commit that is checked out, and where the code differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(("git", *words), cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "src", "steps", "tests")
    return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")


def kept(folder: Path, sabotage: Sabotage) -> Path:
    """Return the file of a row: named by its title, so that a new row makes no other one be measured again."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', title(sabotage).lower()).strip('-')}.json"


def measure(lab: ManagedEmbeddedLab, sabotage: Sabotage, looked_at: str) -> Row:
    """Apply a sabotage to a complete lab, twice: first every check is evaluated, then merlab is called."""
    mend(lab)
    scene = Scene(lab)
    with sabotage.on(scene):
        seen = everything(sabotage, scene)
    mend(lab)
    scene = Scene(lab)
    with sabotage.on(scene):
        report = told(sabotage, scene)
    cause = report.cause or str(report.error)
    verdict = report.verdict.value
    return Row(sabotage.name, sabotage.kind, sabotage.what, sabotage.steps, seen, verdict, cause, looked_at)


def work(folder: str, worker: str, workers: str) -> None:
    """Measure every n-th sabotage, in a lab of this worker, and store each row in `folder`.

    A worker without a number measures those that touch what labs share: it has the machine to itself.
    """
    looked_at = commit()
    alone = int(workers) == 0
    mine = [each for each in ALL if each.is_shared is alone][int(worker) :: int(workers) or 1]
    with standing_lab(f"{NAME}{worker}") as lab:
        for sabotage in mine:
            place = kept(Path(folder), sabotage)
            if not place.exists():
                row = measure(lab, sabotage, looked_at)
                draft = place.with_suffix(".new")
                draft.write_text(json.dumps(asdict(row)))
                draft.rename(place)
                sys.stderr.write(f"{len([*Path(folder).glob('*.json')])} of {len(ALL)}: {row.name}: {row.verdict}\n")


def generate(workers: int) -> list[str]:
    """Measure all in parallel, and write the document; return the checks that no sabotage needs."""
    folder = ROOT / "build" / "sabotage"
    folder.mkdir(parents=True, exist_ok=True)

    def begin(worker: int, of: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen((sys.executable, __file__, str(folder), str(worker), str(of)), cwd=ROOT)

    running = [begin(worker, workers) for worker in range(workers)]
    ends = [process.wait() for process in running]
    if any(ends) or begin(0, 0).wait():
        raise RuntimeError("a worker ended badly: its last words are above")
    read = [json.loads(kept(folder, each).read_text()) for each in ALL]
    text, useless = render([Row(**row | {"steps": tuple(row["steps"])}) for row in read])
    DOCUMENT.write_text(text)
    return useless


if __name__ == "__main__":
    if sys.argv[1:]:
        work(*sys.argv[1:])
    elif useless := generate(int(os.environ.get("MERLAB_WORKERS", "2"))):
        sys.exit(f"no sabotage needs these checks: {', '.join(useless)}")
