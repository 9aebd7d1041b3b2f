"""What a person sees, compared with golden files: a run of the lab in memory, wide, narrow, piped and on a terminal."""

import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import golden_files
from fake_lab import FakeLab, up
from merbridge_lab import events, hints, polling
from merbridge_lab.console import Console
from merbridge_lab.errors import LabError
from merbridge_lab.lab import CONTROL_CLIENT, TRACE
from merbridge_lab.loader import steps
from merbridge_lab.report import Report
from merbridge_lab.requirements import Requirement
from merbridge_lab.runner import Runner

TESTS = Path(__file__).parents[1]


@pytest.fixture
def shown(monkeypatch, capsys):
    """Return a function that runs steps on a lab as merlab would, and returns the output."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("TERM", "dumb")

    def run(lab, which, *, width=None, command="up", **options):
        if width:
            monkeypatch.setenv("COLUMNS", str(width))
        console = Console(**{"brief": command == "up", "terse": command == "verify", **options})
        report = Report(command, lab.name)
        runner = Runner(lab, console.hear, patience=0.05)
        if command == "verify":
            runner.prove(report, standing=steps()[1:4], steps=which)
        else:
            runner.run(report, which)
        console.verdict(report)
        console.close()
        out, err = capsys.readouterr()
        return golden_files.timeless(out), err

    return run


@pytest.mark.parametrize("width", [60, 80])
def test_what_to_type_next_is_broken_between_commands_only(shown, monkeypatch, width):
    monkeypatch.setattr(hints, "caller", lambda: hints.Caller(True, False, "/opt/merlab/.venv/bin/merlab"))
    out, _ = shown(up(FakeLab()), steps()[8:], width=width, command="step")
    lines = out.partition("Next: ")[2].splitlines()
    commands = [command for line in lines for command in line.strip().split(" · ")]
    assert commands == [f"/opt/merlab/.venv/bin/merlab {each}" for each in ("step 9 --keep", "verify", "down")]
    assert all(len(line) <= width - (0 if number else len("Next: ")) for number, line in enumerate(lines))
    assert len(lines) == (3 if width == 60 else 2)


def failing():
    lab = up(FakeLab())
    lab.workload("sleep").served = False
    return lab


@pytest.mark.parametrize("width", [60, 120])
def test_a_whole_run(shown, width):
    out, err = shown(FakeLab(), steps(), width=width)
    golden_files.check(f"up-{width}.txt", out)
    assert err == ""


@pytest.mark.parametrize("width", [60, 120])
def test_a_verify_with_its_matrix(shown, width):
    out, _ = shown(up(FakeLab()), steps()[8:], width=width, command="verify")
    golden_files.check(f"verify-{width}.txt", out)


@pytest.mark.parametrize("width", [60])
def test_a_run_that_fails_shows_cause_evidence_and_hint(shown, width):
    out, _ = shown(failing(), steps()[8:], width=width, command="step")
    golden_files.check(f"failing-{width}.txt", out)
    assert "iptables:sleep/nat/ISTIO_REDIRECT: 4 → 8 packets" in out
    assert "control rules.move_without_ebpf: pass" in out
    assert "✘ step: ISTIO_REDIRECT of sleep moved by 4" in out
    assert out.endswith("  → merlab step 3\n  see docs/troubleshooting.md#rules.stood_still\n")


@pytest.mark.parametrize("command", ["up", "verify", "step"])
def test_in_an_emulated_guest_no_time_is_shown(shown, monkeypatch, command):
    """Nor is a comma left where it was."""
    lab, which = (FakeLab(), steps()) if command == "up" else (up(FakeLab()), steps()[8:])
    monkeypatch.setenv(polling.SLOWNESS, "6")
    for as_json in (False, True):
        told = "".join(shown(lab, which, command=command, as_json=as_json))
        assert "steps held" in told or as_json
        assert not re.search(r"[0-9] s\b|^✔ .*, *$", told, re.MULTILINE), told


def test_skipped_steps_say_why(shown):
    lab = up(FakeLab())
    lab.capabilities -= {TRACE, CONTROL_CLIENT}
    out, _ = shown(lab, steps()[3:9], command="step")
    assert "✔ step: 3 of 6 steps held, 3 skipped" in out
    assert "- the fake lab was told to do without trace" in out


def test_what_already_holds_says_so(shown):
    out, _ = shown(up(FakeLab()), steps()[1:4])
    assert out.count("already done") == 3
    assert "$ make-node" not in out


def test_quiet_says_only_what_did_not_hold(shown):
    out, err = shown(FakeLab(), steps(), verbosity=-1)
    assert out == "✔ up: 10 of 10 steps held in 0.0 s\n"
    assert err == ""
    out, _ = shown(failing(), steps()[7:], verbosity=-1)
    assert out.startswith("8  Save and list the rules, send a request: fail\n✘ up: ISTIO_REDIRECT of")


def test_verbose_shows_evidence_and_all_output(shown):
    plain, _ = shown(up(FakeLab()), steps()[8:9])
    verbose, _ = shown(up(FakeLab()), steps()[8:9], verbosity=2)
    golden_files.check("step-8-verbose.txt", verbose)
    assert "envoy:helloworld-v1/access: 0 → 2 requests" in verbose
    assert "envoy:helloworld-v1/access" not in plain


def test_long_output_is_cut_and_says_how_to_see_it_all(shown):
    lab = FakeLab()
    real = lab.inventory()[0]
    lab.inventory = lambda: [type(real)("bpftool prog", "".join(f"{n}: a program\n" for n in range(50)))]
    plain, _ = shown(lab, steps()[:1], command="step")
    assert "… 44 more lines (-v shows them)" in plain
    verbose, _ = shown(lab, steps()[:1], verbosity=1)
    assert "49: a program" in verbose
    assert "more lines" not in verbose


def test_many_commands_are_cut_and_say_where_the_rest_is(shown):
    lab = FakeLab()
    lab.node.shell_commands = lambda: [f"ip link add veth{n}" for n in range(20)]
    plain, _ = shown(lab, steps()[1:2], command="step")
    assert "… 16 more commands (-v shows them)" in plain
    verbose, _ = shown(FakeLab(), steps()[1:2], verbosity=1)
    assert "more commands" not in verbose


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_commands_are_never_broken_and_stay_pasteable(shown, width):
    lab = FakeLab()
    out, _ = shown(lab, steps(), width=width, verbosity=1)
    lines = out.splitlines()
    for step in steps()[5:]:
        for command in step.commands(lab):
            assert f"   $ {command}" in lines, command


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_prose_keeps_to_the_width_and_names_stay_whole(shown, width):
    out, _ = shown(up(FakeLab()), steps()[8:], width=width, command="verify")
    titles = {f"{step.number}  {step.title}" for step in steps()}
    in_output = False
    for line in out.splitlines():
        # The output of a command is left unchanged; it ends where a check begins.
        in_output = line.startswith("   $ ") or (in_output and line.startswith("     "))
        if not in_output and not any(title in line for title in titles) and not line.startswith("✔ verify: "):
            assert len(line) <= width, line
            assert not line.endswith(("helloworld-", "sleep-")), line
    assert "both sidecars" in out
    assert "…" not in out


def test_markup_in_what_is_shown_is_shown_as_it_is(shown):
    lab = FakeLab()
    lab.node.incurable = "a [red]strange[/red] answer: [/] [bold"
    out, _ = shown(lab, steps()[1:2])
    assert "a [red]strange[/red] answer: [/] [bold" in out


def test_in_a_pipe_there_are_no_escape_codes(shown):
    out, err = shown(FakeLab(), steps())
    assert "\x1b" not in out + err


def test_json_progress_goes_to_stderr(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    console = Console(as_json=True)
    Runner(FakeLab(), console.hear).run(Report("up", "fake"), steps())
    out, err = capsys.readouterr()
    assert out == ""
    assert re.sub(r"\d\.\d", "0.0", err).splitlines() == [f"step {n}: pass (0.0 s)" for n in range(10)]


def test_an_error_is_a_sentence_its_command_and_a_hint(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    command = "nsenter --net=/run/merlab/netns/helloworld-v1 iptables-nft-restore -c"
    Console().error(
        LabError("nft failed with exit status 1", "merlab doctor", command, "line 3\nno\n", id="tool.failed")
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "merlab: nft failed with exit status 1",
        "  │ line 3",
        "  │ no",
        f"  command: {command}",
        "  → merlab doctor",
        "  see docs/troubleshooting.md#tool.failed",
    ]


def test_the_status_of_a_lab(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    lab = up(FakeLab())
    lab.workload("sleep").rules._keep = True
    with lab.workload("sleep").rules.flushed():
        pass
    lab.node.problem = "the route to helloworld-v1 is missing"
    Console().status(lab.describe())
    Console().status(FakeLab().describe())
    out, _ = capsys.readouterr()
    assert "the nat rules of sleep are flushed" in out
    assert "the route to helloworld-v1 is missing" in out
    assert "merlab restore" in out
    assert "no lab is up" in out


def test_without_pods_no_path_of_a_request_is_drawn(capsys):
    described = up(FakeLab()).describe()
    Console().status(described)
    assert "a new request" in capsys.readouterr().out
    Console().status({**described, "workloads": [{**pod, "pid": None} for pod in described["workloads"]]})
    assert "a new request" not in capsys.readouterr().out


def test_requirements_tell_what_mends_them(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    Console().requirements(
        [
            Requirement("kernel.version", "pass", "6.18.44", ">= 5.15", "never shown"),
            Requirement("tool.bcc", "fail", "nothing", "BCC >= 0.25", "apt-get install -y python3-bpfcc " + "x" * 60),
            Requirement("tool.bpftool", "warn", "nothing", "bpftool", "apt-get install bpftool"),
        ]
    )
    out, _ = capsys.readouterr()
    golden_files.check("requirements.txt", golden_files.timeless(out))


def test_a_step_is_told(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    step = steps()[9]
    Console().narrate(step, step.commands(up(FakeLab())))
    out, _ = capsys.readouterr()
    golden_files.check("steps-9.txt", golden_files.timeless(out))


# -- on a real terminal

RUN = """
import sys
sys.path.insert(0, {tests!r})
from fake_lab import FakeLab
from merbridge_lab.console import Console
from merbridge_lab.loader import steps
from merbridge_lab.report import Report
from merbridge_lab.runner import Runner
lab = FakeLab()
lab.node.ensure()
lab.mesh.slow = {slow}
console = Console(color=not {no_color})
report = Runner(lab, console.hear, patience=20).run(Report("up", "fake"), steps()[:3])
console.verdict(report)
"""


def on_terminal(*, slow=0, no_color=False, **environment):
    """Run in a process whose stdout and stderr are a terminal; return its output."""
    inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", RUN.format(tests=str(TESTS), slow=slow, no_color=no_color)],
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
        env={**inherited, "TERM": "xterm-256color", "COLUMNS": "100", **environment},
    )  # fmt: skip
    os.close(theirs)
    read = b""
    try:
        while chunk := os.read(ours, 65536):
            read += chunk
    except OSError:  # the terminal's signal that the last writer is gone
        pass
    finally:
        os.close(ours)
    assert process.wait(timeout=30) == 0
    return read.decode().replace("\r\n", "\n")


COLOR = re.compile(r"\x1b\[[0-9;]*3[0-7][;m]")


def test_a_terminal_gets_colours():
    assert COLOR.search(on_terminal())


def test_no_color_gets_none():
    assert not COLOR.search(on_terminal(no_color=True))
    assert not COLOR.search(on_terminal(NO_COLOR="1"))


def test_a_terminal_shows_what_is_awaited():
    said = on_terminal(slow=12)
    assert "waiting: pods, rules, sidecars and apps are there and ready" in said


def test_a_pipe_is_told_of_a_long_wait_only(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    console = Console()
    console.hear(events.StepBegins(steps()[1]))
    capsys.readouterr()
    tell = polling._Listener.tell
    for seconds in (0.0, 0.9, 1.1, 2.0, 6.2, 7.0):
        tell("the sidecar of sleep to be ready", seconds)
    console.close()
    _, err = capsys.readouterr()
    assert err.splitlines() == [
        "still waiting: the sidecar of sleep to be ready (1 s)",
        "still waiting: the sidecar of sleep to be ready (6 s)",
    ]
    assert polling._Listener.tell is None


def test_a_reader_that_goes_away_does_not_stop_the_work(tmp_path):
    """As in `merlab up | head -1`: the run continues to its end."""
    text = RUN.format(tests=str(TESTS), slow=0, no_color=False) + textwrap.dedent(f"""
        open({str(tmp_path / "done")!r}, "w").write(report.verdict.value)
    """)
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 0
    assert (tmp_path / "done").read_text() == "pass"
    assert said == b""


def test_a_terminal_without_unicode_is_no_reason_to_fail():
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(tests=str(TESTS), slow=0, no_color=True)],
        capture_output=True, check=False, timeout=30, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"3 of 3 steps held" in done.stdout
