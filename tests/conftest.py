"""Which tests run where.

Tests without a marker need no root and no network. `kernel` tests run the real thing. Anywhere else than as root on a
suitable machine they are skipped with the reason. Under MERLAB_REQUIRE=kernel such a skip is a failure, so that a
machine which has lost something is noticed; then a test without a marker may not skip either. `soak` tests run only if
requested by `-m soak`, and so are `packaging`, `guests` and `machines` tests by theirs.

`make test` has two parts, on workers of pytest-xdist (scripts/run-tests):

- `--part machine`: the kernel tests, one after the other on one worker, since they compare the whole machine before and
  after; beside them, on another one, the tests that need no kernel.
- `--part labs`: the sabotages, on three labs side by side. Those marked `machine` touch what all labs share, and so are
  in the first part.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

#: Only one kernel test at a time on a machine, from any checkout: they all create the one lab.
LOCK = Path("/run/merlab-tests.lock")

#: How many tests may be marked smoke: they run on emulated machines, too.
SMOKE_TESTS = 20

_lock = pytest.StashKey[int]()


def required() -> set[str]:
    """Return the markers whose tests may not be skipped, from MERLAB_REQUIRE (a list with commas or blanks)."""
    return set(re.split(r"[\s,]+", os.environ.get("MERLAB_REQUIRE", ""))) - {""}


@functools.cache
def cannot(marker: str) -> str | None:
    """Return why tests with this marker cannot run here, or None."""
    if marker == "cluster":
        return None if os.environ.get("MERLAB_TEST_CLUSTER") else "no cluster is named by MERLAB_TEST_CLUSTER"
    if os.geteuid() != 0:
        return "needs root"
    from merbridge_lab.requirements import embedded

    lacking = [one for one in embedded(quick=True) if one.verdict == "fail"]
    return "; ".join(f"{one.name}: {one.found}" for one in lacking) or None


def pytest_configure() -> None:
    # A shell that runs the tests in the background, or nohup, makes them, and what they start, ignore these.
    default = (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    )
    for number, handler in default:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", choices=["machine", "labs"], help="one of the two parts of `make test`; else both")


def _part(item: pytest.Item) -> str:
    return "labs" if item.path.parent.name == "sabotage" and not item.get_closest_marker("machine") else "machine"


def _divide(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Remove what belongs to the other part."""
    part = config.getoption("part")
    others = [item for item in items if part and _part(item) != part]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]
    if part == "machine":
        items.sort(key=lambda item: _needs_nothing(item.nodeid))  # the slowest first


def _needs_nothing(nodeid: str) -> bool:
    return nodeid.startswith("tests/unit/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Assign a file of tests without needs to any free worker, and the machine to one worker."""
    if config.getoption("part") != "machine":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByMachine(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0] if _needs_nothing(nodeid) else "the machine"

    return ByMachine(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    smoke = [item for item in items if item.get_closest_marker("smoke")]
    if len(smoke) > SMOKE_TESTS:
        raise pytest.UsageError(f"{len(smoke)} tests are marked smoke, and {SMOKE_TESTS} may be")
    _divide(config, items)
    if not os.environ.get("MERLAB_TEST_CLUSTER") and "cluster" not in config.getoption("markexpr"):
        # They have a separate run, `make test-cluster`: here they are deselected, not skipped.
        cluster = [item for item in items if item.get_closest_marker("cluster")]
        if cluster:
            config.hook.pytest_deselected(items=cluster)
            items[:] = [item for item in items if item not in cluster]
    for marker in ("soak", "packaging", "guests", "machines"):
        aside = [item for item in items if item.get_closest_marker(marker)]
        if aside and marker not in config.getoption("markexpr"):
            config.hook.pytest_deselected(items=aside)
            items[:] = [item for item in items if item not in aside]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in ("kernel", "cluster"):
        if item.get_closest_marker(marker) and (reason := cannot(marker)):
            pytest.skip(reason)
    if item.get_closest_marker("kernel"):
        _hold_machine(item.config)


def pytest_sessionstart(session: pytest.Session) -> None:
    # With workers, the controller holds the machine: the workers would wait for each other.
    config = session.config
    asked = "not kernel" not in config.getoption("markexpr") and not all("tests/unit" in each for each in config.args)
    if config.getoption("numprocesses", None) and asked and not cannot("kernel"):
        _hold_machine(config)


def _hold_machine(config: pytest.Config) -> None:
    """Wait until no other session runs kernel tests; the lock is held until this session ends, however it ends."""
    if _lock in config.stash or hasattr(config, "workerinput"):
        return
    descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"\nwaiting for another session's kernel tests to end ({LOCK})")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    config.stash[_lock] = descriptor


def pytest_unconfigure(config: pytest.Config) -> None:
    if _lock in config.stash:
        os.close(config.stash[_lock])
        del config.stash[_lock]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> object:
    """Turn the skip of a test that must run into a failure, in any phase."""
    report = yield
    if may_not_skip(item) and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"MERLAB_REQUIRE={','.join(sorted(required()))}: this may not be skipped. {reason}"
    return report


def may_not_skip(item: pytest.Item) -> bool:
    """Report whether the test must run: a marker of it is required, or any is and the test has none."""
    has = {marker for marker in ("kernel", "cluster") if item.get_closest_marker(marker)}
    return bool(required() & has if has else required())


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> object:
    """Do the same for whole modules: pytest.importorskip and the like."""
    report = yield
    if required() and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"MERLAB_REQUIRE: {collector.nodeid} may not be skipped. {report.longrepr}"
    return report
