"""merlab on the lab in memory, as a program: `python tests/fake_merlab.py up --demo`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fake_lab import FakeDriver, FakeLab, up
from merbridge_lab import cli
from merbridge_lab.labs import selection


def main() -> None:
    """Run merlab with a lab in memory, which is up already if the first argument says so."""
    lab = FakeLab()
    if sys.argv[1:2] == ["--is-up"]:
        del sys.argv[1]
        up(lab)
    driver = FakeDriver(lab)
    # Each worker has a lab of its own, also beside a run of the tests in another checkout.
    worker, run = (os.environ.get(f"PYTEST_XDIST_{name}", "main") for name in ("WORKER", "TESTRUNUID"))
    driver.lab_name = f"fake-{worker}-{run[:8]}"
    selection.pick = lambda _asked: (driver, "in memory")
    sys.argv[0] = "merlab"
    cli.main()


if __name__ == "__main__":
    main()
