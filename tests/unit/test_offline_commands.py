"""`merlab steps N --lab kind` if no lab is up: every command of the walkthrough, placeholders for unknown values.

Nothing replaces Docker or a cluster: Docker is contacted where nothing answers.
"""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from merbridge_lab import original_commands
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kind import names
from merbridge_lab.labs.kind.provider import KindProvider
from merbridge_lab.labs.kubernetes import offline_commands
from merbridge_lab.labs.kubernetes.managed_lab import ManagedKubernetesLab
from merbridge_lab.labs.options import Options

REQUEST = "exec deploy/sleep -c sleep -- curl -s helloworld:5000/hello"
#: What was typed in 2022, and the commands that do the same now, in order.
TODAY = {
    0: ["uname -r", "bpftool map", "bpftool prog", "bpftool cgroup tree"],
    1: ["kind create cluster --name merbridge"],
    2: ["istioctl install -y", "manifests namespace |", "manifests sleep |", "manifests helloworld |", REQUEST],
    3: ["merlab manifests merbridge | kubectl --context kind-merbridge apply -f -"],
    4: ['patch daemonset merbridge --type json -p \'[{"op": "add", ', "get daemonset merbridge -o yaml"],
    5: ["cat /sys/kernel/tracing/trace_pipe", REQUEST],
    6: [REQUEST],
    7: ["tasks ls | grep CONTAINER", "nsenter -t PID -n ip -o -4 address show"],
    8: [
        "nsenter -t PID -n iptables-nft-save -c -t nat > /var/lib/merlab/sleep.rules",
        "nsenter -t PID -n iptables-nft -t nat -vnL",
        "nsenter -t PID -n iptables-nft -t nat -vnL ISTIO_REDIRECT",
        REQUEST,
        "nsenter -t PID -n iptables-nft -t nat -vnL ISTIO_REDIRECT",
    ],
    9: [
        "nsenter -t PID -n iptables-nft -t nat -F",
        REQUEST,
        "nsenter -t PID -n iptables-nft-restore -c < /var/lib/merlab/sleep.rules",
    ],
}
WORDS = {7: ["CONTAINER", "PID"], 8: ["PID"], 9: ["PID"]}


@pytest.fixture(scope="module")
def nowhere(tmp_path_factory):
    """An environment in which no Docker answers and no cluster is known."""
    folder = tmp_path_factory.mktemp("nowhere")
    there = {"DOCKER_HOST": f"unix://{folder}/docker.sock", "KUBECONFIG": f"{folder}/config"}
    return {**os.environ, **there, "COLUMNS": "200", "NO_COLOR": "1"}


def merlab(environment, *arguments):
    return subprocess.run(
        [sys.executable, "-c", "from merbridge_lab.cli import main; main()", *arguments],
        capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def told(nowhere):
    done = merlab(nowhere, "steps", "0..9", "--lab", "kind", "--json")
    assert done.returncode == 0, done.stderr
    return {step["number"]: step for step in json.loads(done.stdout)["steps"]}


@pytest.mark.parametrize("number", range(10))
def test_every_command_of_the_walkthrough_is_there_in_its_order(told, number):
    rest = iter(told[number]["commands"])
    for wanted in TODAY[number]:
        assert any(wanted in command for command in rest), wanted


@pytest.mark.parametrize("number", range(10))
def test_words_stand_for_what_is_not_known_and_are_explained(told, number):
    note, words = told[number]["note"], WORDS.get(number, [])
    typed = " ".join(told[number]["commands"])
    assert [
        word for word in (offline_commands.CONTAINER, offline_commands.PID) if re.search(rf"\b{word}\b", typed)
    ] == words
    if words:
        assert re.fullmatch(
            rf"{' and '.join(words)} (is a placeholder|are placeholders) for what the lab will have: .+", note
        )
    else:
        assert note is None


def test_names_that_are_fixed_are_given(told):
    commands = [command for step in told.values() for command in step["commands"]]
    nodes = {words[2] for command in commands if (words := shlex.split(command))[:2] == ["docker", "exec"]}
    assert nodes == {names.NODE}
    contexts = {word for command in commands for word in re.findall(r"--context (\S+)", command)}
    assert contexts == {names.CONTEXT}


def test_a_person_reads_commands_note_and_what_was_typed_in_2022(nowhere, told):
    said = merlab(nowhere, "steps", "9", "--lab", "kind").stdout
    for command in told[9]["commands"][:3]:
        assert f"   $ {command}\n" in said
    assert f"   {told[9]['note']}\n" in said
    for one in original_commands.original(9):
        assert f"   $ {one.then}\n" in said


def test_step_8_asks_again_and_step_9_may_look_at_one_chain_only():
    assert [one.then for one in original_commands.original(8)] == [
        "iptables-save > file",
        "iptables -t nat -vnL",
        "curl helloworld:5000/hello  # again",
    ]
    (only,) = [one for one in original_commands.original(9) if "ISTIO_REDIRECT" in one.then]
    assert "step 8" in only.now


def test_nothing_is_done_on_paper(nowhere, monkeypatch):
    for name in ("DOCKER_HOST", "KUBECONFIG"):
        monkeypatch.setenv(name, nowhere[name])
    lab = ManagedKubernetesLab(KindProvider(Options()), Options())
    with pytest.raises(LabError):
        lab.workload("sleep")
    with pytest.raises(LabError):
        lab.trace_command()
    done = merlab(nowhere, "step", "9", "--lab", "kind")
    assert done.returncode == 3
    assert "nsenter" not in done.stdout + done.stderr
