"""Commands in a container through the API: their results, and that no wait for an API in trouble is unlimited."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.unit.api_server import BINARY, CLOSE, Keys, Server, frame, plainly, upgraded

from merbridge_lab.adapters import kubernetes_api, kubernetes_exec
from merbridge_lab.adapters.memfd import MemFile
from merbridge_lab.errors import LabError

SUCCESS = {"status": "Success"}
CLOSED = (CLOSE, b"\x03\xe8")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An Api adds its cluster to no_proxy; the other tests must have their own value."""
    monkeypatch.setenv("no_proxy", "example.com")


@pytest.fixture
def serve(keys):
    servers = []

    def begin(answer=None):
        servers.append(Server(keys, answer))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


@pytest.fixture
def execute(keys, serve):
    def run(answer=None, *, timeout=10):
        api = kubernetes_api.Api(keys.credentials(serve(answer).port))
        return kubernetes_exec.execute(api, "default", "sleep-1", "sleep", ["curl", "-sS", "a b"], timeout)

    return run


def said(channel, content):
    return (BINARY, bytes([channel]) + (content if isinstance(content, bytes) else json.dumps(content).encode()))


def failure(message, **more):
    return said(3, {"status": "Failure", "message": message, **more})


def test_both_streams_and_success(execute):
    frames = [said(1, b""), said(1, b"out\xc3"), said(2, b"err"), said(1, b"\xbc" + b"x" * 1000), said(3, SUCCESS)]
    assert execute(upgraded(*frames, CLOSED)) == (0, f"outü{'x' * 1000}", "err")


def test_what_comes_in_pieces_is_put_together(execute):
    def slowly(connection):
        whole = frame(*said(1, b"x" * 1000)) + frame(*said(3, SUCCESS)) + frame(*CLOSED)
        for start in (0, 1, 3, 500, 1003, 1010):
            connection.sendall(whole[start : {0: 1, 1: 3, 3: 500, 500: 1003, 1003: 1010}.get(start)])
            time.sleep(1.5 * kubernetes_exec._GLANCE)

    assert execute(upgraded(then=slowly)) == (0, "x" * 1000, "")


def test_the_exit_status_of_the_command(execute):
    causes = {"causes": [{"reason": "ExitCode", "message": "7"}]}
    assert execute(upgraded(failure("exit 7", reason="NonZeroExitCode", details=causes), CLOSED)) == (7, "", "")


def test_what_is_asked_for(keys, serve):
    server = serve(upgraded(said(3, SUCCESS), CLOSED))
    kubernetes_exec.execute(
        kubernetes_api.Api(keys.credentials(server.port)), "default", "sleep-1", "sleep", ["curl", "a b", "ü&"], 10
    )
    (request,) = server.requests
    wanted = "container=sleep&stdout=true&stderr=true&command=curl&command=a+b&command=%C3%BC%26"
    assert request.startswith(f"GET /api/v1/namespaces/default/pods/sleep-1/exec?{wanted} HTTP/1.1\r\n")


def test_no_proxy_is_asked(execute, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert execute(upgraded(said(3, SUCCESS), CLOSED))[0] == 0


@pytest.mark.parametrize(
    "answer",
    [None, lambda connection, _: connection.recv(1), upgraded(then=lambda connection: connection.close())],
    ids=["no handshake", "no upgrade", "lost"],
)
def test_an_api_that_does_not_answer_is_told_in_seconds(execute, monkeypatch, answer):
    monkeypatch.setattr(kubernetes_exec, "TIMEOUT", (1.0, 1.0))
    began = time.monotonic()
    with pytest.raises(
        kubernetes_api.ApiUnavailableError, match=r"the API of the cluster at https://127\.0\.0\.1:\d+ does not answer"
    ):
        execute(answer)
    assert time.monotonic() - began < 5


def test_a_connection_that_is_refused(keys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(kubernetes_api.ApiUnavailableError):
        kubernetes_exec.execute(kubernetes_api.Api(keys.credentials(port)), "default", "sleep-1", "sleep", ["true"], 10)


def test_an_end_without_a_status_is_no_success(execute):
    with pytest.raises(kubernetes_api.ApiUnavailableError, match="broke off curl in default/sleep-1"):
        execute(upgraded(said(1, b"half"), CLOSED))


def test_a_command_that_does_not_end(execute):
    began = time.monotonic()
    with pytest.raises(LabError, match="curl in default/sleep-1 did not end within 1 s"):
        execute(upgraded(said(1, b"more to come"), then=lambda connection: connection.recv(1)), timeout=1)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "answer",
    [
        upgraded(failure("cannot exec in a stopped container", reason="InternalError", details={}), CLOSED),
        upgraded(failure("container is in CONTAINER_EXITED state", reason="InternalError"), CLOSED),
        plainly(500, 'unable to upgrade connection: container not found ("sleep")'),
        plainly(404, 'pods "sleep-1" not found'),
    ],
    ids=["stopped", "exited", "no container", "no pod"],
)
def test_a_container_that_is_gone(execute, answer):
    with pytest.raises(kubernetes_api.NotFoundError):
        execute(answer)


def test_a_command_that_cannot_be_run(execute):
    message = 'exec: "curl": executable file not found in $PATH'
    with pytest.raises(LabError, match="curl in default/sleep-1 could not be run") as failed:
        execute(upgraded(failure(message, reason="InternalError", details={"causes": [{"message": message}]}), CLOSED))
    assert failed.value.stderr == message
    assert not isinstance(failed.value, (kubernetes_api.NotFoundError, kubernetes_api.ApiUnavailableError))


def test_an_api_that_cannot_now(execute):
    with pytest.raises(kubernetes_api.ApiUnavailableError, match="cannot answer now"):
        execute(plainly(503, "the server is shutting down"))


CHILD = """
import json, sys
from merbridge_lab import signals
from merbridge_lab.adapters import kubeconfig, kubernetes_api, kubernetes_exec
signals.install()
api = kubernetes_api.Api(kubeconfig.of_mapping(json.load(sys.stdin), direct=True))
print("ready", flush=True)
try:
    kubernetes_exec.execute(api, "default", "sleep-1", "sleep", ["curl"], 60)
except signals.Interrupted as stop:
    print("interrupted by", stop, flush=True)
"""


def test_ctrl_c_ends_it(keys, serve):
    reached = []
    server = serve(upgraded(then=lambda connection: (reached.append(1), connection.recv(1))))
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        json.dump(keys.kubeconfig(server.port), process.stdin)
        process.stdin.close()
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 20
        while not reached and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.stdout.read() == "interrupted by SIGINT\n"
        assert time.monotonic() - began < 5


def test_a_file_in_memory_that_is_let_go_twice_closes_nothing_of_others():
    """Its number belongs to the next file by then, which may hold another's keys."""
    first = MemFile(b"one")
    first.close()
    second = MemFile(b"another")
    first.close()
    assert Path(second.path).read_bytes() == b"another"
    second.close()
