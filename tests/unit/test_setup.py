"""The project's own rules that no tool enforces: what steps import, what set-up prints, what is never committed."""

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from merbridge_lab.requirements.packages import table

ROOT = Path(__file__).parents[2]
SETUP = ROOT / "scripts/setup"

pytestmark = pytest.mark.skipif(not SETUP.exists(), reason="not a checkout")

STEPS = sorted((ROOT / "steps").glob("*.py"))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_there_are_ten_steps():
    assert [path.name[:4] for path in STEPS] == [f"s{number:02}_" for number in range(10)]


@pytest.mark.parametrize("path", STEPS, ids=lambda path: path.stem)
def test_a_step_imports_the_facade_and_checks_only(path):
    allowed = re.compile(r"(merbridge_lab\.(api|checks(\.\w+)?)|__future__|typing|collections\.abc)$")
    tree = ast.parse(path.read_text())
    assert [name for name in imported(tree) if not allowed.match(name)] == []
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("path", sorted((ROOT / "src/merbridge_lab/checks").glob("*.py")), ids=lambda path: path.stem)
def test_a_check_knows_no_lab(path):
    forbidden = re.compile(r"merbridge_lab\.(labs|adapters|dataplane|runner|console|cli)\b")
    assert [name for name in imported(ast.parse(path.read_text())) if forbidden.match(name)] == []


def test_commands_are_never_strings_for_a_shell():
    for path in (ROOT / "src").rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        keywords = {keyword.arg for call in calls for keyword in call.keywords}
        names = {ast.unparse(call.func) for call in calls}
        assert "shell" not in keywords, path
        assert "os.system" not in names, path
        # One place polls with a deadline; everything else waits there.
        assert "time.sleep" not in names or path.name == "polling.py", path


def bare(tmp_path, *commands):
    """Return a checkout with a blank in its path, and a PATH with only these commands."""
    checkout = tmp_path / "a check out"
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    (checkout / "src/merbridge_lab/data").mkdir(parents=True)
    shutil.copytree(ROOT / "requirements", checkout / "requirements")
    for name in ("pyproject.toml", "src/merbridge_lab/__init__.py", "src/merbridge_lab/data/packages.txt"):
        shutil.copy(ROOT / name, checkout / name)
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "awk", "cat", "cksum", "dirname", "grep", "id", "sed", "env", "rm", "uname", *commands):
        (folder / name).symlink_to(shutil.which(name))
    # The script adds an administrator's folders of commands, because an ordinary PATH on Debian lacks them.
    script = checkout / "scripts/setup"
    script.write_text(script.read_text().replace("PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin", ""))
    return checkout, {"PATH": str(folder), "HOME": "/nonexistent"}


def fake(environment, name, text):
    path = Path(environment["PATH"]) / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!{shutil.which('sh')}\n{text}\n")
    path.chmod(0o755)


def setup(checkout, environment, *arguments):
    argv = [str(checkout / "scripts/setup"), *arguments]
    return subprocess.run(
        argv, env=environment, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
    )


def test_without_apt_doctor_is_named(tmp_path):
    done = setup(*bare(tmp_path), "packages")
    assert done.returncode == 0
    assert "merlab doctor" in done.stderr


def test_without_root_and_sudo_there_is_one_sentence(tmp_path):
    checkout, environment = bare(tmp_path)
    fake(environment, "id", "echo 1000")
    done = setup(checkout, environment, "root", "true")
    assert done.returncode == 3
    said = "set-up: this needs root, and there is no sudo here: become root (su) and run make again\n"
    assert done.stderr == said


def test_without_root_sudo_is_used_and_leaves_no_bytecode(tmp_path):
    checkout, environment = bare(tmp_path)
    fake(environment, "id", "echo 1000")
    fake(environment, "sudo", 'if [ "$1" = -n ]; then exit 0; fi; echo "$@"')
    done = setup(checkout, environment, "root", ".venv/bin/merlab", "up", "a b")
    assert done.stdout == "-- env PYTHONDONTWRITEBYTECODE=1 .venv/bin/merlab up a b\n"


def test_u1_sudo_is_told_which_lab_is_meant(tmp_path):
    checkout, environment = bare(tmp_path)
    fake(environment, "id", "echo 1000")
    # What sudo does: a new environment, with the variables of the command line.
    fake(environment, "sudo", 'if [ "$1" = -n ]; then exit 0; fi; shift; exec env -i PATH="$PATH" "$@"')
    fake(environment, "merlab", 'echo "$MERLAB_NAME, $MERLAB_LAB, $*"')
    named = {**environment, "MERLAB_NAME": "merlab-two", "MERLAB_LAB": "embedded"}
    assert setup(checkout, named, "root", "merlab", "down", "a b").stdout == "merlab-two, embedded, down a b\n"
    assert setup(checkout, environment, "root", "merlab", "down").stdout == ", , down\n"


def test_u7_who_cannot_become_root_learns_it_before_the_set_up():
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "ARGS"))}
    for target, before in (("up", 2), ("verify", 2), ("down", 1)):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, env=own, capture_output=True, text=True, check=True)
        lines = done.stdout.splitlines()
        assert lines[0] == "scripts/setup root true"
        assert lines[1 : 1 + before] == ["scripts/setup packages", "scripts/setup venv"][-before:]


def test_u9_how_to_type_merlab_alone(tmp_path):
    checkout, environment = bare(tmp_path)
    script = checkout / ".venv/bin/merlab"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\necho it is $1\n")
    script.chmod(0o755)
    fake(environment, "id", "echo 0")
    said = setup(checkout, environment, "on-path").stdout.removeprefix("to type merlab alone:  ")
    run = [shutil.which("sh"), "-c", f"{said}merlab me"]
    assert subprocess.run(run, env=environment, capture_output=True, check=True).stdout == b"it is me\n"
    fake(environment, "id", "echo 1000")
    fake(environment, "sudo", 'exec "$@"')
    said = setup(checkout, environment, "on-path").stdout.removeprefix("to type merlab alone:  ")
    run = [shutil.which("sh"), "-c", f"{said}eval 'merlab me'"]
    assert subprocess.run(run, env=environment, capture_output=True, check=True).stdout == b"it is me\n"
    on_path = {"PATH": f"{script.parent}:{environment['PATH']}"}
    assert setup(checkout, on_path, "on-path").stdout == ""


def test_a_python_that_is_too_old_is_one_sentence(tmp_path):
    checkout, environment = bare(tmp_path)
    fake(environment, "python3", "exit 1")
    script = checkout / "scripts/setup"
    script.write_text(script.read_text().replace("/usr/bin/python3 python3.13 python3.12 python3.11 python3.10", ""))
    done = setup(checkout, environment, "venv")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "Python 3.10" in done.stderr


def test_only_what_is_missing_is_installed(tmp_path):
    checkout, environment = bare(tmp_path)
    log = tmp_path / "log"
    fake(environment, "id", "echo 0")
    fake(environment, "apt-cache", "echo '  Candidate: 7.1'")
    fake(environment, "apt-get", f'echo "$@" >>{log}')
    for name in ("ip", "nft", "curl", "ps", "nsenter", "unshare", "setpriv", "python3"):
        fake(environment, name, "exit 0")
    done = setup(checkout, environment, "packages")
    assert done.returncode == 0, done.stderr
    update, install, bpftool = log.read_text().splitlines()
    assert update.split()[0] == "update"
    packages = set(install.split("--no-install-recommends")[1].split())
    # BCC is searched for at its own place, which may exist on the machine that runs this.
    assert packages | {"python3-bpfcc"} == {"iptables", "python3-bpfcc"}
    assert bpftool.endswith(" bpftool")


@pytest.mark.parametrize(("words", "wanted"), [((), False), (("dev",), True)])
def test_what_only_the_tests_need_is_installed_for_them_alone(tmp_path, words, wanted):
    checkout, environment = bare(tmp_path)
    log = tmp_path / "log"
    fake(environment, "id", "echo 0")
    fake(environment, "apt-get", f'echo "$@" >>{log}')
    for name in ("ip", "nft", "curl", "ps", "nsenter", "unshare", "setpriv", "python3", "iptables-nft", "bpftool"):
        fake(environment, name, "exit 0")
    for _ in range(2):
        assert setup(checkout, environment, "packages", *words).returncode == 0
        assert (" strace" in (log.read_text() if log.exists() else "")) == wanted
        log.unlink(missing_ok=True)
        fake(environment, "strace", "exit 0")
        wanted = False


def test_ubuntus_bpftool_comes_with_the_kernel_and_is_not_insisted_on(tmp_path):
    checkout, environment = bare(tmp_path)
    log = tmp_path / "log"
    fake(environment, "id", "echo 0")
    fake(environment, "apt-cache", "echo '  Candidate: (none)'")
    fake(environment, "apt-get", f'echo "$@" >>{log}; case $* in *linux-tools*) exit 100;; esac')
    for name in ("ip", "nft", "curl", "ps", "nsenter", "unshare", "setpriv", "python3"):
        fake(environment, name, "exit 0")
    done = setup(checkout, environment, "packages")
    assert done.returncode == 0
    assert f"linux-tools-common linux-tools-{os.uname().release}" in log.read_text()
    assert "going on without it" in done.stderr


def test_every_need_has_a_way_to_be_looked_for():
    text = SETUP.read_text()
    own = [need for need in table() if re.search(rf"^    {need}\) ", text, re.MULTILINE)]
    # The others are named like their command.
    assert set(table()) - set(own) == {"nft", "ip", "curl", "wrk", "h2load", "iperf3"}


def test_nothing_of_the_machine_it_was_written_on_is_in_it():
    for name in ("Makefile", ".ci/run", "scripts/setup", "scripts/lock", "pyproject.toml"):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://|/tmp/|/work/|/root/|index-url", text), name


def leg_of_ci():
    """Return the function of .ci/run that runs a part of it, as it stands there."""
    return re.search(r"^leg\(\).*?^}", (ROOT / ".ci/run").read_text(), re.MULTILINE | re.DOTALL)[0]


@pytest.mark.parametrize(("minute", "limit"), [(0, 30), (57, 30), (80, 8), (87, 1), (100, 1)])
def test_no_leg_of_ci_gets_more_than_is_left_of_ninety_minutes(minute, limit):
    script = f"set -euo pipefail\n{leg_of_ci()}\nSECONDS={60 * minute + 5}\nleg 30 it true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=30)
    assert f"(at most {limit} min)" in done.stdout


@pytest.mark.parametrize(
    ("command", "status", "told"),
    [("true", 0, "passed"), ("exit 7", 7, "exit 7"), ("sleep 60", 124, "did not end in time")],
)
def test_a_leg_of_ci_says_what_runs_and_how_long_it_took(command, status, told):
    script = f"set -euo pipefail\n{leg_of_ci().replace('${limit}m', '${limit}s')}\nleg 1 it sh -c '{command}'; echo on"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == status
    assert done.stdout.splitlines()[0] == f"== it: sh -c {command} (at most 1 min)"
    assert re.fullmatch(rf"== it: 0:0\d min, {told}", done.stdout.splitlines()[1])
    assert ("on" in done.stdout.splitlines()) == (status == 0)
