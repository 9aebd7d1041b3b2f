"""What the agent keeps on the node's disk, what wakes it, and what it asks: real files, inotify, sockets and TLS."""

import dataclasses
import http.server
import json
import os
import selectors
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from api_server import Keys

from merbridge_lab import __version__
from merbridge_lab.adapters.cri_runtime import Runtime, Sandbox
from merbridge_lab.agent import agent_status, http_server, metrics, signal_wakeups
from merbridge_lab.agent.look_intervals import interval
from merbridge_lab.agent.namespace_labels import NamespaceLabels
from merbridge_lab.agent.node_state import NodeState, default_generation
from merbridge_lab.agent.pod_watch import PodWatch
from merbridge_lab.agent.refusals import Refusal
from merbridge_lab.agent.service import Service
from merbridge_lab.agent.service_account import ServiceAccount
from merbridge_lab.agent.tracked_pod import TrackedPod
from merbridge_lab.dataplane import Reconciler
from merbridge_lab.dataplane.legs import ALL_LEGS
from merbridge_lab.errors import LabError
from merbridge_lab.polling import poll_until

CAPTURED = Path(__file__).parents[1] / "captured"
POD = Sandbox("1", "5060982b-b6f8-43c6-a4c4-ec8455b9fd2b", "shop", "web-0", ("10.0.0.1",))


# -- lock and generation


def test_later_versions_have_higher_generations():
    versions = ["0.1.0", "0.1.1", "0.2.0", "0.10.0", "1.0.0", "1.0.12"]
    assert sorted(versions, key=default_generation) == versions


@pytest.mark.parametrize("others", [[], [(3, "older")], [(4, "new")], [(4, "other")]], ids=str)
def test_a_newer_generation_and_another_version_take_over(tmp_path, others):
    node = NodeState(tmp_path / "run", tmp_path / "state")
    for generation, stamp in others:
        node.record(generation, stamp)
    node.require_not_older(4, "new")
    node.record(4, "new")
    node.require_not_older(4, "new")


def test_an_older_generation_does_not_take_over(tmp_path):
    node = NodeState(tmp_path / "run", tmp_path / "state")
    node.record(5, "new")
    with pytest.raises(LabError, match=r"of generation 5 \(new\): this one is of generation 4") as refused:
        node.require_not_older(4, "old")
    assert refused.value.id == "agent.older"
    assert refused.value.hint == "merlab agent run --generation 6"


def test_two_versions_of_one_generation_do_not_replace_each_other_in_turns(tmp_path):
    node = NodeState(tmp_path / "run", tmp_path / "state")
    for stamp in ("a", "b", "c"):
        node.require_not_older(1, stamp)
        node.record(1, stamp)
    for stamp in ("a", "b"):
        with pytest.raises(LabError, match=f"it replaced this version, {stamp}"):
            node.require_not_older(1, stamp)
    node.record(1, "c")
    node.require_not_older(1, "c")
    node.require_not_older(2, "a")  # on purpose
    node.record(2, "a")
    with pytest.raises(LabError):
        node.require_not_older(1, "c")
    node.require_not_older(2, "c")
    node.forget()
    node.require_not_older(1, "b")


def test_one_agent_has_the_lock_until_its_process_ends(tmp_path):
    node = NodeState(tmp_path / "run", tmp_path / "state")
    assert not node.is_running
    code = (
        "import sys; from pathlib import Path; from merbridge_lab.agent.node_state import NodeState;"
        " assert NodeState(*map(Path, sys.argv[1:])).take() is not None; print('has it', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "state")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "has it\n"
        assert node.is_running
        assert node.take() is None
        other.kill()
    assert not node.is_running
    descriptor = node.take()
    assert descriptor is not None
    assert node.is_running  # also asked by the process that has it
    os.close(descriptor)


def test_a_lock_whose_file_its_holder_has_removed_is_none(tmp_path, monkeypatch):
    """Who opened the file before a removal must not believe that it has the lock: another agent locks a new file."""
    node = NodeState(tmp_path / "run", tmp_path / "state")
    opened = []

    def opens_before_a_removal():
        descriptor = NodeState._open_lock(node)
        opened.append(descriptor)
        if len(opened) == 1:
            node.forget()
        return descriptor

    monkeypatch.setattr(node, "_open_lock", opens_before_a_removal)
    descriptor = node.take()
    assert len(opened) == 2
    assert os.path.samestat(os.fstat(descriptor), (tmp_path / "run/lock").stat())
    other = NodeState(tmp_path / "run", tmp_path / "state")
    assert other.take() is None
    os.close(descriptor)


def test_the_kill_switch_and_the_generation_outlive_a_restart_of_the_node(tmp_path):
    node = NodeState(tmp_path / "run", tmp_path / "state")
    os.close(node.take())
    node.record(5, "new")
    node.is_redirecting = False
    node.write({"ready": True})
    shutil.rmtree(tmp_path / "run")  # memory
    again = NodeState(tmp_path / "run", tmp_path / "state")
    assert not again.is_redirecting
    assert again.recorded() == node.recorded() is not None
    again.forget()
    assert list((tmp_path / "state").iterdir()) == []


def test_the_kill_switch_outlives_everything_but_a_removal(tmp_path):
    node = NodeState(tmp_path / "run", tmp_path / "state")
    assert node.is_redirecting
    node.is_redirecting = False
    assert not NodeState(tmp_path / "run", tmp_path / "state").is_redirecting
    node.is_redirecting = True
    node.is_redirecting = True
    assert node.is_redirecting
    node.is_redirecting = False
    node.forget()
    assert node.is_redirecting


def test_an_agent_that_starts_is_not_ready_by_the_word_of_the_one_before_it(tmp_path):
    node = NodeState(tmp_path / "run", tmp_path / "state")
    os.close(node.take())
    node.begin()
    assert node.read() == {}
    node.write({"ready": True, "pods": []})
    node.begin()
    assert node.read() == {"ready": False, "pods": []}


# -- the state that is shown


def test_the_status_counts_reasons_and_corrects_what_the_pins_do_not_have(tmp_path):
    node = NodeState(tmp_path / "run", tmp_path / "state")
    refused = TrackedPod(POD, 0.0, 0.0, Refusal("no_rules", "Istio's rules are not in it"))
    waits = TrackedPod(
        dataclasses.replace(POD, name="web-1"), 0.0, 0.0, Refusal("no_listener", "nothing listens on port 15006")
    )
    descriptor = node.take()
    state = agent_status.state([refused, waits], generation=7, ready=True, runtime_problem="", namespaces_asked=False)
    node.write(state)
    sources = agent_status.Sources(node, Reconciler(tmp_path / "pins"))
    told = agent_status.status(sources)
    assert (told["running"], told["ready"], told["generation"], told["version"]) == (True, True, 7, __version__)
    assert [pod["state"] for pod in told["pods"]] == ["refused", "pending"]
    assert told["refused"] == {"no_listener": 1, "no_rules": 1}
    assert "refused  shop/web-0: Istio's rules are not in it" in agent_status.lines(told)
    assert told["redirecting"] is None
    assert "redirecting: not loaded; debug: off" in agent_status.lines(told)
    assert "labels of namespaces: not asked" in agent_status.lines(told)
    assert "merlab_agent_runtime_answers 1.0" in metrics.text(sources, {})().decode()
    node.write({**state, "runtime": "the container runtime does not answer"})
    assert "merlab_agent_runtime_answers 0.0" in metrics.text(sources, {})().decode()
    node.write({**state, "programs": "this kernel cannot do BTF"})
    told = agent_status.status(sources)
    assert not told["ready"]
    assert "this kernel cannot do BTF" in agent_status.lines(told)
    os.close(descriptor)
    assert not agent_status.status(sources)["ready"]


def test_the_answers_on_the_loopback(tmp_path):
    sources = agent_status.Sources(NodeState(tmp_path / "run", tmp_path / "state"), Reconciler(tmp_path / "pins"))
    pulse = http_server.Pulse()
    port = http_server.start(0, sources, pulse, metrics.text(sources, {}))

    def get(path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()

    assert get("/healthz") == (200, "alive\n")
    assert get("/readyz") == (503, "not ready\n")
    assert get("/elsewhere")[0] == 404
    code, numbers = get("/metrics")
    assert code == 200
    assert "merlab_agent_ready 0.0" in numbers
    assert 'merlab_pods{state="served"} 0.0' in numbers
    with pytest.raises(LabError, match=f"port {port} on 127.0.0.1 is not available"):
        http_server.start(port, sources, pulse, metrics.text(sources, {}))


def test_it_is_told_to_look_by_one_post_and_nothing_else(tmp_path):
    sources = agent_status.Sources(NodeState(tmp_path / "run", tmp_path / "state"), Reconciler(tmp_path / "pins"))
    bell = signal_wakeups.Bell()
    port = http_server.start(0, sources, http_server.Pulse(), metrics.text(sources, {}), bell.ring)
    with selectors.DefaultSelector() as selector:
        selector.register(bell, selectors.EVENT_READ)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/look", timeout=5)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/elsewhere", data=b"", timeout=5)
        assert not selector.select(0)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/look", data=b"", timeout=5) as answer:
            assert answer.status == 202
        assert selector.select(5)
        assert bell.rang()
        assert not selector.select(0)
        assert not bell.rang()


# -- what wakes it


def test_the_watch_tells_of_pods_and_their_containers(tmp_path):
    above = tmp_path / "kubelet/kubepods/besteffort"
    above.mkdir(parents=True)
    first = above / f"pod{POD.uid}"
    first.mkdir()
    with PodWatch(tmp_path) as watch:
        watch.scan()
        assert watch.pods == {POD.uid: first}
        (first / "sidecar").mkdir()
        assert watch.events() == ({POD.uid}, set())
        second = above.parent / "podabc"  # of the guaranteed class
        (second / "sandbox").mkdir(parents=True)
        changed, gone = watch.events()
        assert (changed, gone) == ({"abc"}, set())
        (second / "app").mkdir()
        assert watch.events() == ({"abc"}, set())
        for folder in ("sandbox", "app", "."):
            (second / folder).rmdir()
        assert watch.events().gone == {"abc"}
        assert watch.pods == {POD.uid: first}
        assert watch.events() == (set(), set())


DRIVERS = {
    "cgroupfs": ("kubelet/kubepods/besteffort", "pod5060982b-b6f8-43c6-a4c4-ec8455b9fd2b"),
    "systemd": (
        "kubepods.slice/kubepods-besteffort.slice",
        "kubepods-besteffort-pod5060982b_b6f8_43c6_a4c4_ec8455b9fd2b.slice",
    ),
    "systemd, with a cgroup root": (
        "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice",
        "kubelet-kubepods-besteffort-pod5060982b_b6f8_43c6_a4c4_ec8455b9fd2b.slice",
    ),
    "systemd, with a cgroup root, guaranteed": (
        "my.slice/my-own.slice/my-own-kubepods.slice",
        "my-own-kubepods-pod5060982b_b6f8_43c6_a4c4_ec8455b9fd2b.slice",
    ),
}


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_watch_knows_the_names_of_either_driver(tmp_path, driver):
    above, name = DRIVERS[driver]
    pod = tmp_path / above / name
    (tmp_path / above).mkdir(parents=True)
    (tmp_path / "system.slice/podman.service").mkdir(parents=True)
    with PodWatch(tmp_path) as watch:
        watch.scan()
        pod.mkdir()
        assert watch.events().changed == {POD.uid}
        assert watch.pods == {POD.uid: pod}
        (pod / "cri-containerd-22.scope").mkdir()
        assert watch.events().changed == {POD.uid}
        watch.scan()
        assert watch.pods == {POD.uid: pod}


def test_the_watch_knows_the_path_of_a_real_pod(tmp_path):
    captured = (CAPTURED / "cases/c01-node-init-scope.txt").read_text()
    told = next(line for line in captured.splitlines() if line.startswith("pod "))
    path = tmp_path / told.partition(".scope/")[2]  # below the node's own cgroup
    path.mkdir(parents=True)
    with PodWatch(tmp_path) as watch:
        watch.scan()
        assert watch.pods == {"00000000-0000-4000-8000-000000000001": path.parent}


def test_a_pod_that_nothing_wakes_the_loop_for_is_looked_at_in_seconds():
    pod = TrackedPod(POD, 0.0, 0.0, Refusal("no_sidecar", "it has neither Istio's rules nor a sidecar"))
    assert interval(pod, 60.0, is_watched=False) <= 10.0
    assert interval(pod, 60.0, is_watched=True) > 100.0


# -- readiness


def test_without_an_answer_of_the_runtime_it_is_not_ready_after_a_minute(tmp_path, monkeypatch):
    told = []
    with Runtime(tmp_path / "none.sock") as runtime:
        service = Service(
            runtime, Reconciler(tmp_path / "pins"), tmp_path, ALL_LEGS, install=lambda: None, redirecting=lambda: True,
            changed=lambda service: told.append(service.is_ready), turned=lambda: None,
        )  # fmt: skip
        now = [time.monotonic()]
        monkeypatch.setattr("merbridge_lab.agent.service.time.monotonic", lambda: now[0])
        service._settle_at = float("inf")
        monkeypatch.setattr(service._pods, "refresh", list)
        service._turn()
        assert service.is_ready
        monkeypatch.undo()
        monkeypatch.setattr("merbridge_lab.agent.service.time.monotonic", lambda: now[0])
        for seconds in (11, 30, 25):
            now[0] += seconds
            service._turn()  # the runtime is asked, and does not answer
        assert service.runtime_problem
        assert not service.is_ready
        assert told == [True, True, False]
        service._selector.close()
        service._watch.__exit__()


# -- what it asks


def test_a_runtime_that_is_not_there_is_an_error_with_its_socket(tmp_path):
    with Runtime(tmp_path / "none.sock") as runtime, pytest.raises(LabError, match=r"does not answer at .*none\.sock"):
        runtime.running()


NAMESPACES = {"shop": {"labels": {"team": "web"}}, "bank": {"labels": {"merlab.dev/dataplane": "none"}}, "bare": {}}


@pytest.fixture
def api(tmp_path):
    """An API server that knows three namespaces."""
    keys = Keys(tmp_path)
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            name = self.path.rpartition("/")[2]
            allowed = self.headers["Authorization"] == "Bearer secret"
            code = 200 if allowed and name in NAMESPACES else 404 if allowed else 403
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps({"metadata": NAMESPACES.get(name)}).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*keys.server)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("secret\n")
    (account / "ca.crt").write_bytes(keys.ca.read_bytes())
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.server_port)}
    labels = NamespaceLabels(ServiceAccount(account, environ))
    yield labels, account, server, asked
    server.shutdown()
    server.server_close()


def of(name):
    return dataclasses.replace(POD, namespace=name)


def test_a_namespace_opts_out_by_the_same_label(api):
    labels, _, _, asked = api
    assert labels.refusal(of("shop")) is None
    assert labels.refusal(of("bare")) is None
    assert labels.refusal(of("gone")) is None
    assert labels.refusal(of("bank")).id == "namespace_opted_out"
    before = len(asked)
    assert labels.refusal(of("bank")).sentence == "its namespace bank has the label merlab.dev/dataplane=none"
    assert len(asked) == before


def test_after_a_look_that_was_asked_for_a_namespace_is_asked_again(api, monkeypatch):
    labels, account, _, asked = api
    assert labels.refusal(of("shop")) is None
    before = len(asked)
    labels.forget()
    monkeypatch.setitem(NAMESPACES, "shop", {"labels": {"merlab.dev/dataplane": "none"}})
    assert labels.refusal(of("shop")).id == "namespace_opted_out"
    assert len(asked) == before + 1
    labels.forget()
    (account / "token").write_text("of another")
    assert labels.refusal(of("shop")).id == "namespace_opted_out"  # the last answer counts


def test_where_it_cannot_be_asked_a_new_pod_is_left_to_the_rules_and_a_known_namespace_is_not(api, monkeypatch):
    labels, account, server, _ = api
    assert labels.refusal(of("shop")) is None
    (account / "token").write_text("of another")
    refusal = labels.refusal(of("bank"))
    assert refusal.id == "namespace_unknown"
    assert "403" in refusal.sentence
    server.shutdown()
    server.server_close()
    monkeypatch.setattr("merbridge_lab.agent.namespace_labels.time.monotonic", lambda: 1e9)
    assert labels.refusal(of("shop")) is None
    assert labels.refusal(of("bank")).id == "namespace_unknown"


def test_the_status_says_in_a_sentence_that_the_api_server_is_away_and_stays_ready(api, tmp_path):
    labels, _, server, _ = api
    node = NodeState(tmp_path / "run", tmp_path / "state")
    descriptor = node.take()
    node.write(agent_status.state([], generation=7, ready=True, runtime_problem="", namespaces_asked=True))
    sources = agent_status.Sources(node, Reconciler(tmp_path / "pins"))
    assert agent_status.status(sources, api_silence=labels.silence())["api_server"] is None
    server.shutdown()
    server.server_close()
    told = agent_status.status(sources, api_silence=labels.silence())
    os.close(descriptor)
    assert told["ready"]
    assert told["api_server"].startswith("the API server does not answer; what is served goes on")
    assert told["api_server"].endswith("Connection refused")
    assert told["api_server"] in agent_status.lines(told)


def test_a_server_that_is_silent_is_not_asked_for_each_namespace(api):
    """It takes a second for an answer that does not come, and the loop has other pods to look at."""
    _, account, _, _ = api
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port}
        labels = NamespaceLabels(ServiceAccount(account, environ))
        began = time.monotonic()
        for number in range(20):
            assert labels.refusal(of(f"n{number}")).id == "namespace_unknown"
        assert time.monotonic() - began < 3.0


def test_without_a_token_nobody_is_asked(tmp_path):
    labels = NamespaceLabels(ServiceAccount(tmp_path, {"KUBERNETES_SERVICE_HOST": "127.0.0.1"}))
    assert not labels.are_asked
    assert labels.silence() == ""
    assert labels.refusal(of("bank")) is None


def test_only_run_needs_the_packages_of_its_extra(tmp_path):
    """merlab itself, and what reads the state, work without them; the rest is an error with what to type."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['grpc', 'google.protobuf', 'prometheus_client']));"
        " from merbridge_lab.cli import main; main()"
    )
    places = ["--pins", str(tmp_path / "pins"), "--run", str(tmp_path / "run"), "--state", str(tmp_path / "state")]

    def merlab(*words):
        argv = [sys.executable, "-c", code, "agent", *words, *places]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)

    assert "merlab agent needs" not in merlab("status", "--json").stderr
    done = merlab("run", "--once")
    assert done.returncode == 3
    assert "merlab agent needs Python packages that are not installed" in done.stderr
    assert "pip install '.[agent]'" in done.stderr
    assert poll_until(
        lambda: not NodeState(tmp_path / "run", tmp_path / "state").is_running,
        timeout=1.0,
        awaiting="the lock to be free",
    )


COMMANDS = (
    ("status",), ("counters",), ("pairs",), ("programs",), ("redirect", "off"), ("debug", "on"), ("trace",),
    ("remove",),
)  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_directory_of_pins_that_is_not_on_a_bpffs_is_an_error_that_names_the_option(tmp_path, words):
    pins = tmp_path / "no/such/pins"
    places = ["--pins", str(pins), "--run", str(tmp_path / "run"), "--state", str(tmp_path / "state")]
    argv = [sys.executable, "-m", "merbridge_lab.cli", "agent", *words, *places]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3, done.stdout + done.stderr
    assert f"{pins} is not on a bpffs" in done.stderr.replace("\n", " ")
    assert "--pins" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "state").exists()
