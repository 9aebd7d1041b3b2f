"""`merlab bench` as a user types it, over bench pods in memory."""

from __future__ import annotations

import contextlib
import signal

import pytest
from typer.testing import CliRunner

from fake_bench import Sets
from fake_lab import FakeDriver, up
from merbridge_lab import cli, lock, signals
from merbridge_lab.adapters import cpu
from merbridge_lab.bench import generators
from merbridge_lab.labs import selection
from schema_files import read


@pytest.fixture
def lab(monkeypatch, tmp_path):
    """A lab in memory that is up, with bench pods."""
    driver = FakeDriver()
    monkeypatch.setattr(selection, "pick", lambda _asked: (driver, "it is up"))
    monkeypatch.setattr(lock, "folder", lambda: tmp_path / "locks")
    monkeypatch.setattr(generators, "versions", lambda _rows: {"wrk": "4.1.0"})
    monkeypatch.setattr(cpu, "is_emulated", lambda: False)
    monkeypatch.setattr(cpu, "busy_seconds", lambda: 0.0)  # whatever else runs on this machine
    handlers = {signum: signal.getsignal(signum) for signum in signals.SIGNALS}
    up(driver.lab)
    driver.lab.sets = Sets()

    @contextlib.contextmanager
    def bench_pods(*, direct):
        driver.lab.asked_direct = direct
        yield driver.lab.sets

    monkeypatch.setattr(driver.lab, "bench_pods", bench_pods, raising=False)
    yield driver.lab
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def bench(*words):
    return CliRunner().invoke(cli.app, ["bench", *words])


def test_json_is_one_object_that_the_schema_allows(lab):
    done = bench("--rows", "latency", "--rounds", "8", "--json")
    assert done.exit_code == 0, done.output
    told = read("bench", done.stdout)
    assert [row["name"] for row in told["rows"]] == ["latency", "rules-rules"]
    assert told["rounds"] == 8
    assert told["verdict"] == "~"
    assert told["machine"]["wrk"] == "4.1.0"
    assert not lab.asked_direct


def test_a_person_gets_a_table_and_what_follows(lab):
    done = bench("--rows", "latency", "--rounds", "8", "--no-color")
    assert done.exit_code == 0
    assert "rules-rules" in done.stdout
    assert "No difference seen between eBPF and the rules for latency." in done.stdout
    assert lab.sets.enrolled is not None


@pytest.mark.usefixtures("lab")
def test_with_q_there_is_the_result_and_nothing_else():
    done = bench("--rows", "latency", "--rounds", "8", "-q", "--no-color")
    assert done.exit_code == 0
    assert done.stdout == "No difference seen between eBPF and the rules for latency.\n"
    assert done.stderr == ""


@pytest.mark.usefixtures("lab")
def test_with_fail_on_what_is_not_known_is_no_success():
    assert bench("--rows", "latency", "--rounds", "8", "--fail-on", "loss").exit_code == 0
    assert bench("--rows", "latency", "--rounds", "2", "--fail-on", "loss").exit_code == 3
    assert bench("--rows", "latency", "--rounds", "2").exit_code == 0


def test_with_fail_on_a_loss_is_1(lab, monkeypatch):
    def run(pods, argv, timeout):
        text = plain(pods, argv, timeout)
        return text.replace('"p50": 2757', '"p50": 5757') if pods.now.ebpf else text

    plain = type(lab.sets.sets["A"]).run
    monkeypatch.setattr(type(lab.sets.sets["A"]), "run", run)
    done = bench("--rows", "latency", "--rounds", "8", "--fail-on", "loss", "--json")
    assert done.exit_code == 1, done.output
    assert read("bench", done.stdout)["verdict"] == "loss"


@pytest.mark.usefixtures("lab")
def test_with_v_other_figures_are_shown():
    words = ("--rows", "latency", "--rounds", "8", "--no-color")
    assert "CPU per request" in bench(*words, "-v").stdout
    assert "CPU per request" not in bench(*words).stdout


def test_an_interrupt_is_told_with_what_was_measured(lab):
    lab.sets.stop_after = 30
    done = bench("--rows", "latency", "--json")
    assert done.exit_code == 130
    told = read("bench", done.stdout)
    assert told["interrupted"]
    assert told["rounds"] == 3


def test_a_report_is_written_and_one_that_cannot_be_is_an_error_before_measuring(lab, tmp_path):
    target = tmp_path / "bench.html"
    assert bench("--rows", "latency", "--rounds", "2", "--report", str(target)).exit_code == 0
    assert target.read_text().lstrip().startswith("<!")
    lab.sets.order.clear()
    done = bench("--report", str(tmp_path / "missing" / "bench.html"))
    assert done.exit_code == 3
    assert "cannot be written" in done.stderr
    assert lab.sets.order == []


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--rows", "speed"], 2, "there is no row called 'speed'"),
        (["--quick", "--full"], 2, "--quick and --full exclude each other"),
        (["--rounds", "0"], 2, "--rounds"),
        (["--fail-on", "gain"], 2, "--fail-on"),
    ],
)
def test_wrong_usage_is_2(words, status, said):
    done = bench(*words)
    assert done.exit_code == status
    assert said in done.stderr


def test_no_lab_is_3(lab):
    lab.remove(1)
    done = bench()
    assert done.exit_code == 3
    assert "no lab is up" in done.stderr


@pytest.mark.usefixtures("lab")
def test_an_emulated_processor_is_refused(monkeypatch):
    monkeypatch.setattr(cpu, "is_emulated", lambda: True)
    done = bench()
    assert done.exit_code == 3
    assert "is emulated" in done.stderr


@pytest.mark.parametrize(
    ("model", "clocks", "emulated"),
    [
        ("QEMU TCG CPU version 2.5+", "tsc hpet acpi_pm\n", True),
        ("QEMU Virtual CPU version 2.5+", "kvm-clock tsc\n", False),
        ("AMD EPYC", "tsc kvm-clock\n", False),
        ("Intel(R) Xeon(R)", "tsc\n", False),
    ],
)
def test_an_emulated_processor_is_known_by_its_name_and_clocks(monkeypatch, tmp_path, model, clocks, emulated):
    (tmp_path / "clocks").write_text(clocks)
    monkeypatch.setattr(cpu, "_CLOCKS", tmp_path / "clocks")
    monkeypatch.setattr(cpu, "model", lambda: model)
    assert cpu.is_emulated() is emulated


def test_rows_complete_after_a_comma():
    from merbridge_lab.cli.bench import _rows

    assert _rows("la") == ["latency"]
    assert _rows("latency,b") == ["latency,bodies", "latency,bulk"]
