"""R3: an API that fails briefly between a flush and its end leaves no rules flushed, and loses none.

The API server is tests/unit/api_server.py; it really runs the requested commands, on a pod whose iptables are small
scripts that keep its nat table in a file.
"""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.unit.api_server import CLOSE, Keys, Server, upgraded
from tests.unit.stub_provider import StubNode
from tests.unit.test_kubernetes_exec import failure, said

from merbridge_lab import ruleset
from merbridge_lab.adapters import kubernetes_api
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import node_exec, pod_netns, rules, topology

RULES = (Path(__file__).parents[1] / "captured" / "sleep.nft.rules").read_text()
TOOLS = {
    "nsenter": '#!/bin/sh\ncase "$1" in --net=*) shift 2; exec "$@";; esac\n'
    "echo '2: eth0    inet 10.244.0.5/24 brd 10.244.0.255 scope global eth0'\n",
    "iptables-nft-save": '#!/bin/sh\ncat "$NAT"\n',
    "iptables-nft": '#!/bin/sh\ngrep -v -e "-A " "$NAT" >"$NAT.new"; mv "$NAT.new" "$NAT"\n',
    "iptables-nft-restore": '#!/bin/sh\ncat >"$NAT"\n',
}


class Cluster:
    """An API whose one pod has a nat table; `hiccup` decides, by a command and its number, if its answer is lost."""

    def __init__(self, folder, server):
        self.nat = folder / "nat"
        self.nat.write_text("# Generated\n*nat" + RULES.partition("*nat")[2])
        for name, text in TOOLS.items():
            (folder / "bin").mkdir(exist_ok=True)
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self._env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "NAT": str(self.nat)}
        self.hiccup = lambda _argv: None
        self.server = server(self.answer)

    def answer(self, connection, request):
        argv = parse_qs(urlsplit(request.split()[1]).query, keep_blank_values=True)["command"]
        lost = self.hiccup(argv)
        if lost == "before":
            return connection.close()
        done = subprocess.run(argv, env=self._env, capture_output=True, check=False)
        if lost == "after":
            return connection.close()
        cause = {"causes": [{"reason": "ExitCode", "message": str(done.returncode)}]}
        status = (
            failure("ended", reason="NonZeroExitCode", details=cause)
            if done.returncode
            else said(3, {"status": "Success"})
        )
        return upgraded(said(1, done.stdout), said(2, done.stderr), status, (CLOSE, b"\x03\xe8"))(connection, request)

    @property
    def rules(self):
        return [str(rule) for rule in ruleset.parse(self.nat.read_text())]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "example.com")  # an Api adds its cluster to it
    monkeypatch.setattr(topology, "STATE", str(tmp_path / "state"))
    keys, servers = Keys(tmp_path), []

    def serve(answer):
        servers.append(Server(keys, answer))
        return servers[0]

    made = Cluster(tmp_path, serve)
    made.node_exec = node_exec.HelperPodExec(
        kubernetes_api.Api(keys.credentials(made.server.port)), StubNode("node"), topology.HELPER
    )
    yield made
    servers[0].close()


@pytest.fixture
def pod_rules(cluster):
    process = pod_netns.look(cluster.node_exec, os.getpid())
    return rules.PodRules("sleep", cluster.node_exec, lambda _anew: (SimpleNamespace(uid="uid-1"), process))


def twice(lost, *words):
    """Lose the answers to the first two commands with these words in them."""
    left = [2]

    def hiccup(argv):
        if left[0] and all(any(word in each for each in argv) for word in words):
            left[0] -= 1
            return lost
        return None

    return hiccup


def test_a_command_is_tried_again_where_the_api_fails_twice(cluster):
    cluster.hiccup = twice("before", "echo")
    assert cluster.node_exec.execute(["echo", "here"]).stdout == "here\n"
    assert len(cluster.server.requests) == 3


def test_an_api_that_stays_silent_is_given_up_at_a_deadline(cluster, monkeypatch):
    monkeypatch.setattr(node_exec, "_PATIENCE", 0.3)
    cluster.hiccup = lambda _argv: "before"
    with pytest.raises(kubernetes_api.ApiUnavailableError):
        cluster.node_exec.execute(["true"])
    assert len(cluster.server.requests) > 1


def test_an_exit_status_is_an_answer(cluster):
    with pytest.raises(LabError, match="exit status 3"):
        cluster.node_exec.execute(["sh", "-c", "exit 3"])
    assert len(cluster.server.requests) == 1


@pytest.mark.parametrize("lost", ["before", "after"])
@pytest.mark.parametrize(
    "words", [("exit 96",), ("cat", "sleep.rules"), ("load <",), ("rm", "sleep.rules")], ids="+".join
)
def test_no_rule_stays_flushed_where_the_api_fails_twice(cluster, pod_rules, words, lost):
    before = cluster.rules
    assert before
    cluster.hiccup = twice(lost, *words)
    with pod_rules.flushed() as saved:
        assert cluster.rules == []
        assert saved.specs("nat") == tuple(before)
    assert cluster.rules == before
    assert not pod_rules.outstanding


def test_a_save_of_another_flush_is_never_written_over(cluster, pod_rules):
    keep = rules.PodRules("sleep", cluster.node_exec, pod_rules._found, keep=True)
    with keep.flushed() as saved:
        pass
    assert pod_rules.outstanding
    _, process = pod_rules._found(False)
    other = rules.PodRules("sleep", cluster.node_exec, lambda _anew: (SimpleNamespace(uid="uid-2"), process))
    with pytest.raises(LabError, match="flushed already"):
        other._transport.save_and_flush(saved)
    pod_rules._transport.save_and_flush(saved)  # the same flush again: the save of the complete rules stays
    assert pod_rules.restore()
    assert cluster.rules
