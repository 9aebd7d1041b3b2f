"""The command line: what it accepts, what it refuses, its exit statuses, and one JSON object on stdout.

With a lab in memory behind it, in this process; as the user types it, in a separate process.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import golden_files
from fake_lab import FakeDriver, up
from merbridge_lab import __version__, cli, lock, signals
from merbridge_lab.errors import LabError
from merbridge_lab.labs import selection
from merbridge_lab.requirements import Requirement
from schema_files import read

#: The name of a lab that does not exist, so that no test sees, or even touches, one that is up on this machine.
ALONE = {"MERLAB_NAME": "merlab-unit", "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
COMMANDS = ["up", "step", "verify", "restore", "down", "status", "doctor", "steps", "exec", "manifests", "agent"]
COMMANDS += ["bench"]
PLANNED = ["compare"]


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """A lab in memory that every call of merlab in this test uses, with a separate lock."""
    fake = FakeDriver()
    monkeypatch.setattr(selection, "pick", lambda asked: (fake, "asked for" if asked else "it is up"))
    monkeypatch.setattr(lock, "folder", lambda: tmp_path / "locks")
    monkeypatch.setenv("COLUMNS", "100")
    handlers = {signum: signal.getsignal(signum) for signum in signals.SIGNALS}
    yield fake
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def merlab(*arguments):
    """Run merlab in this process."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def typed(*arguments, **environment):
    """Run merlab as a user does, in a separate process."""
    python = "from merbridge_lab.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", python, *arguments],
        capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL,
        env={**os.environ, **ALONE, **environment},
    )  # fmt: skip


# -- help


def words_of(command):
    """Return everything that the help of a command says in our own words: the layout is typer's."""
    yield f"# {command.name}"
    yield (command.help or "").strip().replace("\b", "")
    for parameter in command.params:
        if parameter.name == "help":
            continue
        names = " ".join([*parameter.opts, *parameter.secondary_opts]) or parameter.name
        metavar = f" {parameter.metavar}" if parameter.metavar else ""
        yield f"  {names}{metavar}: {getattr(parameter, 'help', None) or ''}".rstrip()


def root():
    return typer.main.get_command(cli.app)


def test_what_the_help_says():
    group = root()
    shown = [
        each
        for command in group.commands.values()
        if not command.hidden
        for each in [command, *getattr(command, "commands", {}).values()]
    ]
    text = "\n".join(line for command in [group, *shown] for line in [*words_of(command), ""])
    golden_files.check("help.txt", text)


def test_planned_commands_are_not_in_the_help_and_the_others_are():
    hidden = {name for name, command in root().commands.items() if command.hidden}
    assert hidden >= set(PLANNED) - {"completion"}
    assert not hidden & set(COMMANDS)


@pytest.mark.parametrize("width", ["60", "100", "200"])
def test_help_names_every_command_and_keeps_to_the_width(width):
    done = typed("--help", COLUMNS=width)
    assert done.returncode == 0
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= int(width)
    for name in COMMANDS:
        assert re.search(rf"(?m)^\W*{name} ", done.stdout), name
    for name in PLANNED:
        assert not re.search(rf"(?m)^\W*{name} ", done.stdout), name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    done = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"})
    assert done.exit_code == 0
    assert f"merlab {command}" in done.stdout
    assert "Example" in done.stdout
    assert CliRunner().invoke(cli.app, [command, "-h"]).exit_code == 0


def test_no_arguments_is_help():
    done = typed()
    assert "verify" in done.stdout + done.stderr


def test_version():
    done = typed("--version")
    assert (done.returncode, done.stdout) == (0, f"merlab {__version__}\n")


IMPORTED = """
import sys
from merbridge_lab.cli import main
sys.argv = ["merlab", *{arguments!r}]
try:
    main()
except SystemExit as end:
    print(sorted(name for name in {names!r} if name in sys.modules), end.code, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["up", "--help"], ["--version"], ["up", "--no-such-option"]], ids=str
)
def test_help_does_not_wait_for_what_only_a_lab_needs(arguments):
    names = ["bcc", "kubernetes", "pyroute2", "cryptography", "jinja2", "yaml", "sh"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED.format(arguments=arguments, names=names)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1].startswith("[] ")


def test_the_walkthrough_itself_needs_neither_rich_nor_typer():
    code = (
        "import sys, merbridge_lab.runner; from merbridge_lab import loader; loader.steps();"
        "print({'rich', 'typer', 'click', 'bcc', 'pyroute2', 'sh'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


# -- wrong usage


@pytest.mark.parametrize(
    "arguments",
    [
        ["step", "12"], ["step", "10"], ["step", "-1"], ["step", "9..3"], ["step", "x"], ["step", "3..x"],
        ["step", "..3"],
        ["step", "3.."], ["step", "8..12"], ["step", ""], ["step"], ["step", "3", "--keep"], ["step", "9..3", "--keep"],
        ["step", "1", "2"], ["up", "--until", "10"], ["up", "--until", "x"], ["up", "--no-such-option"],
        ["up", "--timeout", "soon"], ["up", "--timeout", "0"], ["up", "--iptables", "ebtables"], ["up", "7"],
        ["up", "--pause"], ["up", "--pause", "--json"], ["up", "--events"], ["verify", "--events"],
        ["step", "9", "--auto", "1"], ["up", "--minutes", "5"], ["up", "--record", "x.cast", "--json"],
        ["steps", "x"], ["exec"], ["exec", "sleep"],
        ["exec", "sleep", "--"], ["nosuch"], ["verify", "now"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_is_2_and_touches_no_lab(driver, arguments):
    done = merlab(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not driver.lab.exists


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["step", "12"], "the steps are 0 to 9"),
        (["step", "9..3"], "the steps are 0 to 9"),
        (["step", "x"], "neither a step (9) nor a range of steps (5..9)"),
        (["step", "3", "--keep"], "--keep goes with step 9"),
        (["exec", "sleep"], "what should run?"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("driver")
def test_wrong_usage_says_what_is_right(arguments, words):
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", merlab(*arguments).stderr).split())
    assert words in said


def test_wrong_usage_as_the_user_types_it():
    done = typed("step", "12")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


# -- what is not there


@pytest.mark.parametrize("name", ["cluster"])
@pytest.mark.parametrize("command", [["up"], ["verify"], ["status"], ["step", "9"], ["down"], ["doctor"]], ids=" ".join)
def test_labs_that_are_planned_are_3_and_say_what_to_use(name, command):
    done = merlab(*command, "--lab", name)
    assert done.exit_code == 3
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"merlab: the {name} lab is planned, but not built yet",
        "  → merlab up --lab embedded",
        "  see docs/troubleshooting.md#feature.not_built",
    ]


@pytest.mark.parametrize(
    ("words", "environment", "says"),
    [
        (["up", "--lab", "nowhere"], {}, "there is no lab called 'nowhere'; there are auto, embedded, kind, cluster"),
        (["status"], {"MERLAB_LAB": "zzz"}, "MERLAB_LAB: there is no lab called 'zzz'; there are auto, embedded"),
        (["down", "--lab", "embedded"], {"MERLAB_LAB": "zzz"}, "MERLAB_LAB: there is no lab called 'zzz'"),
        (["up"], {"MERLAB_NAME": "bad name"}, "MERLAB_NAME='bad name' is no name for a lab"),
        (["exec", "nobody", "--", "true"], {}, "there is no workload called 'nobody'"),
        (["shell", "nobody"], {}, "there is no workload called 'nobody'"),
        (["trace", "--pod", "nobody"], {}, "there is no workload called 'nobody'"),
        (["steps", "99"], {}, "the steps are 0 to 9"),
        (["step", "99"], {}, "the steps are 0 to 9"),
        (["manifests", "nobody"], {}, "there is no manifest called 'nobody'"),
    ],
)
def test_m9_a_name_that_merlab_does_not_know_is_wrong_usage(words, environment, says):
    done = typed(*words, **environment)
    assert done.returncode == 2, done.stderr
    assert says in " ".join(done.stderr.replace("│", " ").split())


def test_m9_an_unknown_lab_with_json_is_one_object():
    done = typed("verify", "--json", "--lab", "nowhere")
    assert done.returncode == 2
    told = read("run", done.stdout)
    assert (
        told["error"]["what"]
        == told["cause"]
        == ("--lab: there is no lab called 'nowhere'; there are auto, embedded, kind, cluster")
    )


def test_the_lab_of_the_environment_counts_where_none_is_up(monkeypatch):
    from merbridge_lab.labs.embedded import driver as embedded
    from merbridge_lab.labs.kind import driver as kind

    monkeypatch.setattr(embedded.EmbeddedDriver, "is_up", lambda _self: False)
    monkeypatch.setattr(kind.KindDriver, "is_up", lambda _self: False)
    monkeypatch.setattr(kind.KindDriver, "is_possible", lambda _self: False)
    monkeypatch.setenv("MERLAB_LAB", "cluster")
    with pytest.raises(LabError, match="the cluster lab is planned"):
        selection.pick(None)
    monkeypatch.setenv("MERLAB_LAB", "kind")
    driver, why = selection.pick(None)
    assert (driver.name, why) == ("kind", "MERLAB_LAB")
    assert selection.pick("embedded")[0].name == "embedded"
    assert selection.pick("auto")[0].name == "embedded"
    monkeypatch.delenv("MERLAB_LAB")
    driver, why = selection.pick(None)
    assert (driver.name, why.partition(":")[0]) == ("embedded", "auto")
    monkeypatch.setattr(kind.KindDriver, "is_possible", lambda _self: True)
    driver, why = selection.pick(None)
    assert (driver.name, why.partition(":")[0]) == ("kind", "auto")


def test_the_lab_that_is_up_comes_before_the_environment(monkeypatch):
    from merbridge_lab.labs.embedded import driver as embedded

    monkeypatch.setattr(embedded.EmbeddedDriver, "is_up", lambda _self: True)
    monkeypatch.setenv("MERLAB_LAB", "kind")
    driver, why = selection.pick(None)
    assert (driver.name, why) == ("embedded", "it is up")


@pytest.mark.parametrize("command", PLANNED)
@pytest.mark.parametrize("more", [[], ["--some", "thing", "else"]], ids=str)
def test_planned_commands_are_3_and_say_what_to_use(command, more):
    done = merlab(command, *more)
    assert done.exit_code == 3
    what, hint, see = done.stderr.splitlines()
    assert what == f"merlab: merlab {command} is planned, but not built yet"
    assert hint.startswith("  → merlab ")
    assert see == "  see docs/troubleshooting.md#feature.not_built"


def as_nobody(*arguments):
    """Run merlab as an ordinary user; root becomes one for it."""
    become = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"] if os.geteuid() == 0 else []
    python = "import sys; sys.argv[0] = 'merlab'; from merbridge_lab.cli import main; main()"
    return subprocess.run(
        [*become, sys.executable, "-B", "-c", python, *arguments],
        capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL, env={**os.environ, **ALONE},
    )  # fmt: skip


@pytest.fixture(scope="module")
def nobody():
    done = as_nobody("up", "--lab", "kind")
    if done.returncode != 3:
        pytest.skip(f"an ordinary user cannot run this checkout: {(done.stderr.splitlines() or ['?'])[-1]}")
    return as_nobody


@pytest.mark.parametrize("command", [["up"], ["verify"], ["step", "9"], ["down"], ["restore"]], ids=" ".join)
def test_without_root_it_is_3_one_sentence_and_one_command(nobody, command):
    done = nobody(*command)
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("lab: ")]
    assert len(lines) == 3
    assert lines[0].startswith("merlab: the embedded lab ")
    assert lines[0].endswith("this requires root")
    # By sudo or by su -c, as this machine has it.
    assert " ".join(shlex.split(lines[1])).endswith(f"MERLAB_NAME=merlab-unit merlab {' '.join(command)}")
    assert lines[2] == "  see docs/troubleshooting.md#root.needed"


def test_without_root_json_is_one_object(nobody):
    done = nobody("up", "--json")
    assert done.returncode == 3
    told = read("run", done.stdout)
    assert (told["verdict"], told["command"], told["lab"]) == ("error", "up", "embedded")
    assert told["error"]["what"].endswith("this requires root")


@pytest.mark.parametrize(
    "words",
    [("steps", ""), ("manifests", " "), ("up", "--record", ""), ("up", "--kubeconfig", ""), ("sysdump", "-o", "")],
    ids=" ".join,
)
def test_an_empty_text_is_not_taken_for_none(driver, words):
    done = merlab(*words)
    assert done.exit_code == 2
    assert "it is empty" in done.output
    assert not driver.lab.exists


def test_without_root_one_can_look(nobody):
    """U7."""
    assert "no lab is up  → " in nobody("status").stdout
    assert nobody("steps").returncode == 0
    assert len(nobody("steps", "9").stdout.splitlines()) > 5


# -- a life of a lab


def test_up_and_its_exit_status(driver):
    done = merlab("up")
    assert done.exit_code == 0
    assert "✔ up: 10 of 10 steps held" in done.stdout
    assert done.stderr == "lab: fake (it is up)\n"
    assert driver.lab.kept["verdict"] == "pass"


@pytest.mark.usefixtures("driver")
def test_up_says_which_lab_and_why():
    assert merlab("up", "--lab", "fake").stderr == "lab: fake (asked for)\n"


def test_up_until(driver):
    done = merlab("up", "--until", "2", "-q")
    assert done.exit_code == 0
    assert done.stdout.startswith("✔ up: 3 of 3 steps held")
    assert driver.lab.mesh.there
    assert not driver.lab.dataplane.there


def test_up_puts_right_what_a_crash_left(driver):
    up(driver.lab)
    sleep = driver.lab.workload("sleep")
    sleep.rules.saved = sleep.rules.text
    sleep.rules.flush()
    assert merlab("up", "-q").exit_code == 0
    assert not sleep.rules.outstanding
    assert len(sleep.rules.snapshot().nat) == 18


@pytest.mark.parametrize("command", [["step", "9"], ["step", "5..9"], ["verify"], ["restore"]], ids=" ".join)
@pytest.mark.usefixtures("driver")
def test_without_a_lab_it_is_3(command):
    done = merlab(*command)
    assert done.exit_code == 3
    assert done.stderr.splitlines()[1:] == [
        "merlab: no lab is up",
        "  → merlab up",
        "  see docs/troubleshooting.md#lab.not_up",
    ]


@pytest.mark.parametrize("wanted", ["0", "7", "9", "5..9", "0..9", "3..3"])
def test_step(driver, wanted):
    up(driver.lab)
    done = merlab("step", wanted, "--json")
    assert done.exit_code == 0
    first, _, last = wanted.partition("..")
    numbers = list(range(int(first), int(last or first) + 1))
    assert [step["number"] for step in read("run", done.stdout)["steps"]] == numbers


def test_the_flush_can_be_kept_and_restored(driver):
    up(driver.lab)
    done = merlab("step", "9", "--keep")
    assert done.exit_code == 0
    assert "the nat rules of sleep are left flushed; to put them back: merlab restore" in done.stderr
    assert driver.lab.workload("sleep").rules.outstanding
    assert "1 skipped" in done.stdout
    assert merlab("restore").stdout == "the nat rules of sleep are back\n"
    assert merlab("restore").stdout == "nothing is flushed\n"


def test_restore_names_what_a_killed_command_left(driver, monkeypatch):
    merlab("up")
    monkeypatch.setattr(driver.lab, "sweep", lambda: ["control-sleep", "bench-a-client"])
    done = merlab("restore")
    said = "removed, which a command had left when it was ended: control-sleep, bench-a-client"
    assert done.stdout.splitlines() == [said, "nothing is flushed"]
    assert json.loads(merlab("restore", "--json").stdout)["removed"] == ["control-sleep", "bench-a-client"]


def test_restore_as_json(driver):
    up(driver.lab)
    merlab("step", "9", "--keep")
    assert json.loads(merlab("restore", "--json").stdout) == {
        "schema": 1, "lab": "fake", "restored": ["sleep"], "removed": [],
    }  # fmt: skip
    assert json.loads(merlab("restore", "--json").stdout)["restored"] == []


def test_verify_leaves_everything_as_it_was(driver):
    up(driver.lab)
    before = driver.lab.fingerprint()
    done = merlab("verify", "--json")
    assert done.exit_code == 0, done.stderr
    told = read("run", done.stdout)
    assert [step["number"] for step in told["steps"]] == [8, 9]
    assert len(told["matrix"]) == 6
    assert driver.lab.fingerprint() == before


def test_verify_of_a_broken_lab_is_1_and_names_what_is_broken(driver):
    up(driver.lab).dataplane.problem = "the link connect4 is not pinned"
    done = merlab("verify", "--json")
    assert done.exit_code == 1
    assert read("run", done.stdout)["cause"] == "the link connect4 is not pinned"
    told = merlab("verify")
    assert told.exit_code == 1
    assert "✘ verify: the link connect4 is not pinned" in told.stdout
    assert "→ merlab up" in told.stdout
    assert merlab("up", "-q").exit_code == 0
    assert merlab("verify", "-q").exit_code == 0


def test_down_twice(driver):
    up(driver.lab)
    assert merlab("down").stdout == "the lab is gone\n"
    done = merlab("down")
    assert (done.exit_code, done.stdout) == (0, "there was nothing to remove\n")
    assert json.loads(merlab("down", "--json").stdout) == {"schema": 1, "lab": "fake", "removed": False, "stays": []}


def test_down_removes_the_rest_although_one_part_refuses(driver):
    up(driver.lab).dataplane.refuses = LabError("a link will not go", hint="merlab doctor")
    done = merlab("down")
    assert done.exit_code == 3
    assert "merlab: a link will not go" in done.stderr
    assert not driver.lab.exists


@pytest.mark.parametrize("is_up", [True, False])
def test_status_is_0_whether_or_not_a_lab_is_up(driver, is_up):
    if is_up:
        up(driver.lab)
    done = merlab("status", "--json")
    assert done.exit_code == 0
    assert read("status", done.stdout)["up"] is is_up
    assert merlab("status").exit_code == 0


@pytest.mark.parametrize(("verdict", "status"), [("pass", 0), ("warn", 0), ("fail", 3)])
def test_doctor(driver, verdict, status):
    driver.lab.unable = [Requirement("tool.bpftool", verdict, "nothing", "bpftool", "apt-get install bpftool")]
    done = merlab("doctor", "--json")
    assert done.exit_code == status
    assert read("doctor", done.stdout)["able"] is (status == 0)
    told = merlab("doctor")
    assert told.exit_code == status
    assert ("apt-get install bpftool" in told.stdout) == (verdict != "pass")


def test_doctor_does_not_judge_the_machine_by_its_user(driver, monkeypatch):
    driver.lab.unable = [Requirement("root", "fail", "user 1000", "root", "sudo merlab up")]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    told = merlab("doctor")
    assert told.exit_code == 3
    assert told.stdout.splitlines()[-1] == "only root can run the fake lab; doctor as root checks the rest"
    driver.lab.unable += [Requirement("memory", "fail", "9 MB", "512 MB")]
    assert merlab("doctor").stdout.splitlines()[-1] == "this machine cannot run the fake lab"


@pytest.mark.usefixtures("driver")
def test_steps():
    told = json.loads(merlab("steps", "--json").stdout)
    assert [step["number"] for step in told["steps"]] == list(range(10))
    assert all(step["title"] and step["state"] for step in told["steps"])
    assert len(merlab("steps").stdout.splitlines()) == 10


@pytest.mark.usefixtures("driver")
def test_one_step_is_told():
    (told,) = json.loads(merlab("steps", "9", "--json").stdout)["steps"]
    assert told["commands"][1] == "nsenter --net=/run/fake/netns/sleep iptables-nft -t nat -F"
    assert "redirect.ebpf_took_over" in told["checks"]
    said = merlab("steps", "9").stdout
    for command in told["commands"]:
        assert f"   $ {command}\n" in said


# -- one JSON object, whatever happens


def break_nothing(_lab):
    pass


def break_a_part(lab):
    lab.mesh.incurable = "the sidecar of sleep is not ready"


def break_an_act(lab):
    def refuse():
        raise LabError("nft failed", "merlab doctor", "nft list tables", "no")

    lab.dataplane.ensure = refuse


def break_merlab(lab):
    lab.dataplane.ensure = lambda: 1 / 0


@pytest.mark.parametrize(
    ("change", "status", "verdict"),
    [(break_nothing, 0, "pass"), (break_a_part, 1, "fail"), (break_an_act, 3, "error"), (break_merlab, 4, "error")],
)
def test_up_with_json_is_one_object_whatever_happens(driver, change, status, verdict):
    change(driver.lab)
    done = merlab("up", "--json", "--timeout", "0.1")
    assert done.exit_code == status
    told = read("run", done.stdout)
    assert (told["verdict"], told["command"], told["lab"]) == (verdict, "up", "fake")
    assert told["steps"]
    assert "Traceback" not in done.stderr


def test_a_defect_says_how_to_report_it(driver):
    break_merlab(driver.lab)
    done = merlab("up")
    assert done.exit_code == 4
    assert "merlab: internal error: ZeroDivisionError: division by zero" in done.stderr
    assert "merlab up --debug" in done.stderr


@pytest.mark.parametrize("command", [["verify"], ["step", "9"]], ids=" ".join)
@pytest.mark.usefixtures("driver")
def test_json_without_a_lab_is_one_object(command):
    done = merlab(*command, "--json")
    assert done.exit_code == 3
    told = read("run", done.stdout)
    assert (told["error"]["what"], told["error"]["hint"]) == ("no lab is up", "merlab up")
    assert told["command"] == command[0]


@pytest.mark.parametrize("command", [["down"], ["restore"], ["status"], ["doctor"], ["steps"]], ids=" ".join)
def test_json_of_an_error_is_one_object_for_every_command(command):
    done = merlab(*command, "--lab", "cluster", "--json")
    assert done.exit_code == 3
    told = read("run", done.stdout)
    assert told["error"]["what"] == "the cluster lab is planned, but not built yet"


@pytest.mark.usefixtures("driver")
def test_progress_with_json_goes_to_stderr():
    done = merlab("up", "--json")
    assert re.sub(r"\d\.\d s", "0.0 s", done.stderr).splitlines() == [
        "lab: fake (it is up)",
        *(f"step {number}: pass (0.0 s)" for number in range(10)),
    ]
    assert merlab("up", "--json", "-q").stderr == ""


# -- one at a time


@contextlib.contextmanager
def another(folder, lab="fake", command="verify"):
    """Make another process hold the lock of a lab; yield the process."""
    hold = (
        "import sys, pathlib; from merbridge_lab import lock\n"
        f"lock.folder = lambda: pathlib.Path({str(folder)!r})\n"
        f"with lock.held({lab!r}, {command!r}):\n    print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        yield process
    finally:
        process.stdin.close()
        process.wait(timeout=10)
        process.stdout.close()


@pytest.mark.usefixtures("driver")
def test_u4_a_second_merlab_is_3_and_says_which_lab_command_and_pid_has_it_since_when(tmp_path):
    with another(tmp_path / "locks") as first:
        for command in (["up"], ["verify"], ["step", "9"], ["down"], ["restore"]):
            done = merlab(*command)
            assert done.exit_code == 3
            said = rf"another merlab command is running: verify on the lab fake \(PID {first.pid}, since [\d:]{{8}}\)"
            assert re.search(said, done.stderr)
            assert f"→ merlab {command[0]} --wait" in done.stderr
        assert merlab("status").exit_code == 0
        assert merlab("steps").exit_code == 0
    assert merlab("up", "-q").exit_code == 0
    assert not (tmp_path / "locks").exists()


@pytest.mark.usefixtures("driver")
def test_u4_a_lab_of_another_name_is_not_waited_for(tmp_path):
    with another(tmp_path / "locks", lab="merlab-two"):
        assert merlab("up", "-q").exit_code == 0
        assert [each.name for each in (tmp_path / "locks").iterdir()] == ["merlab-two.lock"]


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("words", [("--wait",), ("--wait-timeout", "60"), ("--wait", "--wait-timeout", "60")])
def test_u4_wait_lets_the_other_one_end_and_says_what_is_awaited(tmp_path, monkeypatch, words):
    said = lock._words
    with another(tmp_path / "locks") as first:
        ends = threading.Timer(1.5, first.stdin.close)

        def said_and_ends(path):
            """Let the other one end a while after it is awaited, however long this machine takes until then."""
            if ends.ident is None:
                ends.start()
            return said(path)

        monkeypatch.setattr(lock, "_words", said_and_ends)
        done = merlab("up", *words)
    assert done.exit_code == 0
    assert f"still waiting: another merlab command is running: verify on the lab fake (PID {first.pid}" in done.stderr


@pytest.mark.usefixtures("driver")
def test_u4_wait_timeout_ends_the_waiting(tmp_path):
    with another(tmp_path / "locks"):
        began = time.monotonic()
        done = merlab("down", "--wait-timeout", "0.3", "--json")
        assert 0.3 <= time.monotonic() - began < 10
    assert done.exit_code == 3
    assert "another merlab command is running" in read("run", done.stdout)["error"]["what"]


# -- U6, U7, U8, U10


def test_u6_status_tells_all_labs_and_which_one_is_meant(driver, monkeypatch):
    """U6: two labs are up, one of them another user's."""
    up(driver.lab)
    every = [
        {"lab": "embedded", "name": "merlab", "default": True},
        {"lab": "embedded", "name": "merlab-two", "default": False},
        {"lab": "kind", "name": "merbridge", "default": False},
    ]
    monkeypatch.setattr(selection, "present", lambda: every)
    assert read("status", merlab("status", "--json").stdout)["labs"] == every
    lines = merlab("status").stdout.splitlines()
    assert lines[:3] == [
        "up: merlab (embedded); commands without --lab mean this one",
        "up: merlab-two (embedded); to mean this one: MERLAB_NAME=merlab-two",
        "up: merbridge (kind); to mean this one: --lab kind",
    ]
    monkeypatch.setattr(selection, "present", lambda: every[:1])
    assert not merlab("status").stdout.startswith("up: ")


def test_u6_all_labs_are_found_by_their_names(monkeypatch, tmp_path):
    from merbridge_lab.labs.embedded import driver as embedded
    from merbridge_lab.labs.kind import driver as kind

    for name in ("merlab", "merlab-two", "merlab-tests.lock", "merlab.locks", "merlab_x", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(embedded.topology, "RUN", tmp_path / "merlab")
    monkeypatch.setattr(kind.KindDriver, "is_up", lambda _self: True)
    monkeypatch.setenv("MERLAB_NAME", "merlab-two")
    assert selection.present() == [
        {"lab": "embedded", "name": "merlab", "default": False},
        {"lab": "embedded", "name": "merlab-two", "default": True},
        {"lab": "kind", "name": "merbridge", "default": False},
    ]
    monkeypatch.setenv("MERLAB_NAME", "merlab-three")
    assert [each["name"] for each in selection.present() if each["default"]] == ["merbridge"]


def test_u7_steps_are_told_to_whom_may_not_look_at_the_lab(driver, monkeypatch):
    up(driver.lab)

    def refuse():
        raise LabError("this requires root", hint="merlab steps")

    monkeypatch.setattr(driver, "require_able", refuse)
    listed = merlab("steps")
    assert listed.exit_code == 0
    assert [line.split("  ")[1] for line in listed.stdout.splitlines()] == ["not known"] * 10
    assert "to see the states of the lab that is up, as root:" in listed.stderr
    told = merlab("steps", "9")
    assert told.exit_code == 0
    assert "   $ merlab exec sleep -- curl -s helloworld:5000/hello" in told.stdout.splitlines()
    assert merlab("status").exit_code == 3


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("merlab exec ", {"sleep", "helloworld-v1", "helloworld-v2"}),
        ("merlab shell hello", {"helloworld-v1", "helloworld-v2"}),
        ("merlab trace --pod s", {"sleep"}),
        ("merlab step ", set("0123456789")),
        ("merlab steps ", set("0123456789")),
        ("merlab up --until ", set("0123456789")),
        ("merlab up --lab ", {"auto", "embedded", "kind"}),
        ("merlab status --lab e", {"embedded"}),
    ],
)
def test_u10_completion_knows_pods_steps_and_labs(words, completed):
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'merlab'; from merbridge_lab.cli import main; main()"],
        env={
            **os.environ,
            "_MERLAB_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert set(done.stdout.split()) == completed, done.stderr


def test_u10_help_and_version_are_what_people_type():
    version = merlab("version")
    assert version.stdout == merlab("--version").stdout
    assert version.exit_code == 0
    assert "Start with" in merlab("help").stdout
    assert "leave the rules flushed" in " ".join(merlab("help", "step").stdout.lower().replace("│", " ").split())
    assert merlab("help", "nothing").exit_code == 2


@pytest.mark.parametrize("columns", [60, 140])
def test_u10_what_is_piped_is_as_wide_as_columns_says(columns):
    lines = typed("steps", "5", "--lab", "embedded", COLUMNS=str(columns)).stdout.splitlines()
    prose = [line for line in lines[2:] if line.startswith("   ") and "$ " not in line]
    assert columns - 25 < max(map(len, prose)) <= columns


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-c", "from merbridge_lab.cli import main; main()", "steps", "--lab", "embedded"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **ALONE},
    )  # fmt: skip
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert "Traceback" not in said
    assert "Broken" not in said
    assert process.wait(timeout=60) == 0


def test_exec_of_an_unknown_workload(driver):
    up(driver.lab)
    done = merlab("exec", "nginx", "--", "true")
    assert done.exit_code == 2
    assert "no workload called 'nginx'; there are" in done.stderr


EXEC = """
import sys
sys.path.insert(0, {tests!r})
from fake_lab import FakeDriver, FakeLab, up
from merbridge_lab.labs import selection
selection.pick = lambda asked: (FakeDriver(up(FakeLab())), "it is up")
from merbridge_lab.cli import main
sys.argv = ["merlab", "exec", "sleep", *{more!r}]
main()
"""


@pytest.mark.parametrize("status", [0, 7, 130])
def test_exec_passes_on_exit_status_output_and_options(status):
    more = ["--", "sh", "-c", f'echo "$0 $*"; exit {status}', "--json", "-v", "--lab", "a  b"]
    done = subprocess.run(
        [sys.executable, "-c", EXEC.format(tests=str(Path(__file__).parents[1]), more=more)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == status
    assert done.stdout == "--json -v --lab a  b\n"
    assert done.stderr == ""


def test_a_kept_flush_is_said_in_few_words_too_and_every_failure_names_its_remedy(driver):
    """U2."""
    up(driver.lab)
    done = merlab("step", "9", "--keep", "-q")
    assert "the nat rules of sleep are left flushed; to put them back: merlab restore" in done.stderr
    for command in (["verify"], ["step", "8"]):
        failed = merlab(*command)
        assert failed.exit_code == 1
        assert failed.stdout.endswith("  → merlab restore\n  see docs/troubleshooting.md#rules.flushed\n")
        assert json.loads(merlab(*command, "--json").stdout)["hint"] == "merlab restore"
    assert driver.lab.swept == 5
    assert driver.lab.workload("sleep").rules.outstanding
    merlab("restore")
    assert merlab("verify").exit_code == 0
