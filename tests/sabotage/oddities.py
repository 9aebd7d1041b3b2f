"""Oddities: unusual and harmless. `verify` must pass, and disturb nobody."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from kernel_objects import held, nothing, open_tracepoint
from saboteur import ALL, oddity

from merbridge_lab.adapters import bpf_syscall, mounts
from merbridge_lab.labs.embedded import envoy
from merbridge_lab.polling import poll_until


@contextlib.contextmanager
def running(argv, **options):
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@oddity("busy machine")
def _(_scene):
    """Two processes for each processor do nothing but compute."""
    with contextlib.ExitStack() as stack:
        for _ in range(2 * (os.cpu_count() or 1)):
            stack.enter_context(running([sys.executable, "-I", "-S", "-c", "while True: pass"]))
        yield


@oddity("another reader of the trace", shared=True)
def _(scene):
    """Somebody else follows the lab's trace, and debug output is on."""
    argv = [sys.executable, "-c", "from merbridge_lab.cli import main; main()", "trace", "--json"]
    with running(argv, stdout=subprocess.DEVNULL):
        scene.lab.dataplane.set_debug(on=True)
        yield
        scene.lab.dataplane.set_debug(on=False)


@oddity("debug output on", shared=True)
def _(scene):
    """Every decision of the dataplane is told in the lab's trace."""
    scene.lab.dataplane.set_debug(on=True)
    yield
    scene.lab.dataplane.set_debug(on=False)


@oddity("foreign BPF programs")
def _(scene):
    """Others have programs on another cgroup, beside the lab's, and on a tracepoint."""
    lab = scene.lab
    other = lab.machine.cgroup.with_name(f"{lab.machine.name}-other")
    other.mkdir()
    try:
        with contextlib.ExitStack() as stack:
            connect = stack.enter_context(
                held(nothing(bpf_syscall.PROG_CGROUP_SOCK_ADDR, bpf_syscall.CGROUP_INET4_CONNECT))
            )
            target = stack.enter_context(held(os.open(other, os.O_RDONLY)))
            stack.enter_context(held(bpf_syscall.link_create(connect, target, bpf_syscall.CGROUP_INET4_CONNECT)))
            watcher = stack.enter_context(held(nothing(bpf_syscall.PROG_RAW_TRACEPOINT, verdict=0)))
            stack.enter_context(held(open_tracepoint(watcher, "sched_switch")))
            yield
    finally:
        other.rmdir()


@oddity("foreign Envoy")
def _(_scene):
    """Another Envoy, not merlab's, runs on the machine."""
    config = "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } } }"
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder, "admin")
        argv = [str(envoy.find_envoy()), "--config-yaml", config, "--disable-hot-restart", "--log-level", "off",
                "--admin-address-path", str(where)]  # fmt: skip
        with running(argv, stderr=subprocess.DEVNULL):
            assert poll_until(where.exists, timeout=10, awaiting="another Envoy to start")
            yield


#: Opens connections to itself, reports them, and holds them until it is told to stop.
IDLE = """
import resource, socket, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
listener = socket.create_server(("127.0.0.1", 7777), backlog=4096)
held = []
for _ in range(int(sys.argv[1])):
    held += socket.create_connection(("127.0.0.1", 7777)), listener.accept()
print(len(held), flush=True)
sys.stdin.read()
"""


@oddity("5,000 idle connections")
def _(scene):
    """5,000 connections of sleep's app to itself are open and idle."""
    argv = scene.lab.workload("sleep").app_argv(["/usr/bin/python3", "-I", "-c", IDLE, "5000"])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "10000\n"
        yield
        holder.stdin.close()


@contextlib.contextmanager
def environment(**values):
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@oddity("odd locale")
def _(_scene):
    """The environment asks for Turkish, with numbers and times of its own."""
    with environment(LANG="tr_TR.UTF-8", LC_ALL="tr_TR.UTF-8", LANGUAGE="tr"):
        yield


@oddity("read-only home")
def _(_scene):
    """HOME is a file system that cannot be written to."""
    with tempfile.TemporaryDirectory() as home:
        mounts.mount("none", Path(home), "tmpfs", data="ro")
        try:
            with environment(HOME=home, XDG_CACHE_HOME=f"{home}/.cache"):
                yield
        finally:
            mounts.umount(Path(home))


#: One connection of an app; it sends requests until it gets the last line, and reports how many were answered.
ASKER = """
import http.client, select, sys
connection = http.client.HTTPConnection("helloworld", 5000, timeout=10)
asked = 0
connection.connect()
opened = connection.sock
while not select.select([sys.stdin], [], [], 0.005)[0]:
    connection.request("GET", "/hello")
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200 and body.startswith(b"Hello version"), (asked, answer.status, body)
    assert connection.sock is opened, f"the connection was closed after {asked} answers"
    asked += 1
print(asked)
"""


@contextlib.contextmanager
def keep_alive_client(scene):
    """Send requests continuously over one connection of sleep's app; fail if one of them does."""
    argv = scene.lab.workload("sleep").app_argv(["/usr/bin/python3", "-I", "-c", ASKER])
    client = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    late = threading.Timer(300, client.kill)
    late.start()
    try:
        yield
    finally:
        told, wrong = client.communicate("enough\n")
        late.cancel()
    assert client.returncode == 0, wrong
    assert int(told) > 100, told


@oddity("a client that keeps its connection")
def _(scene):
    """An app asks on and on over one connection; not one of its requests fails."""
    with keep_alive_client(scene):
        yield


@oddity("all of that at once", quick=True, shared=True)
def _(scene):
    """All the oddities of tests/sabotage/oddities.py together, except the busy machine."""
    with contextlib.ExitStack() as stack:
        for each in [
            each
            for each in ALL
            if each.do.__module__ == __name__ and each.name not in ("busy machine", "all of that at once")
        ]:
            stack.enter_context(each.on(scene))
        yield
