"""Lies about processes: sockets that two hold, covered files of /proc, cgroups and namespaces that are left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

from lies_mesh import end, pod
from lies_programs import folder
from saboteur import lie, oddity

from merbridge_lab.adapters import cgroup, mounts, process
from merbridge_lab.adapters.proc import run
from merbridge_lab.drivers.embedded import enter, layout
from merbridge_lab.waiting import until

PYTHON = ["/usr/bin/python3", "-I", "-S"]


@contextlib.contextmanager
def helper(source, *words, prefix=()):
    """Run a script that says one line when it is ready, and goes on until its standard input is closed."""
    with folder() as into:
        (into / "helper.py").write_text(source)
        argv = [*prefix, *PYTHON, str(into / "helper.py"), *map(str, words)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
            try:
                assert running.stdout.readline(), "the helper ended"
                yield running
            finally:
                running.stdin.close()


# -- sockets that two hold -------------------------------------------------------------------------------------------

#: Takes a duplicate of the socket that listens on a port of a process, and answers what comes to it.
TAKER = """
import contextlib, ctypes, os, select, socket, sys, threading
pid, port = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
held = os.pidfd_open(pid)
for name in os.listdir(f"/proc/{pid}/fd"):
    fd = libc.syscall(438, held, int(name), 0)
    if fd < 0:
        continue
    try:
        sock = socket.socket(fileno=fd)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and sock.getsockname()[1] == port:
            break
    except OSError:
        pass
else:
    sys.exit("no such listener")
# As the app does it, word for word.
version = sys.argv[3]
def serve():
    while True:
        try:
            there, peer = sock.accept()
        except BlockingIOError:
            select.select([sock], [], [])
            continue
        threading.Thread(target=talk, args=(there, peer), daemon=True).start()
def talk(there, peer):
    there.setblocking(True)
    text = f"Hello version: v1, instance: {version}\\n".encode()
    with there:
        with contextlib.suppress(OSError):
          while there.recv(65536):
            there.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-type: text/html; charset=utf-8\\r\\n"
                          b"content-length: %d\\r\\nx-peer: %s\\r\\n\\r\\n%s" % (len(text), peer[0].encode(), text))
if len(sys.argv) > 4:
    threading.Thread(target=serve, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


@lie(
    "a listening socket of an app that two hold",
    r"process \d+ \(.*helper.py.*\) holds a socket of the app of helloworld-v1, too: .* port 5000",
)
def _(scene):
    """A process of root's has a duplicate of the socket that helloworld-v1's app listens on, and answers, too."""
    target = pod(scene, "helloworld-v1")
    with helper(TAKER, target.app_pid, layout.HTTP_PORT, target.spec.name, "answer"):
        yield


@lie(
    "a listening socket of a sidecar that two hold",
    r"process \d+ \(.*helper.py.*\) holds a socket of the sidecar of sleep, too: .* port 15001",
    quick=False,
)
def _(scene):
    """A process of root's has a duplicate of a socket that sleep's Envoy listens on, and does nothing with it yet."""
    target = pod(scene, "sleep")
    with helper(TAKER, target.sidecar_pid, layout.OUTBOUND_PORT, target.spec.name):
        yield


# -- covered files ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def covered(place, text=None):
    """Mount a copy of what a file of the kernel's says now, or `text`, over that file."""
    with folder() as into:
        copy = into / "copy"
        copy.write_bytes(place.read_bytes() if text is None else text)
        mounts.bind(copy, place)
        try:
            yield
        finally:
            mounts.umount(place)


@lie(
    "a covered {file} of an app",
    r"/proc/\d+/{file} is covered by a mount",
    {"file": ["maps", "environ", "status", "cgroup", "limits"]},
    quick={"environ"},
)
def _(scene, file):
    """Over /proc/PID/{file} of helloworld-v1's app a copy of it is mounted."""
    with covered(Path(f"/proc/{pod(scene, 'helloworld-v1').app_pid}/{file}")):
        yield


@lie("a covered list of a cgroup's processes", "/app/cgroup.procs is covered by a mount")
def _(scene):
    """Over the cgroup.procs of sleep's app a copy of it is mounted, and another process runs in that cgroup."""
    place = pod(scene, "sleep").cgroup / "app"
    with covered(place / "cgroup.procs"):
        yield


@lie("a covered limit of a cgroup", "/sidecar/(cgroup.freeze|pids.max|cpu.max|cgroup.events) is covered by a mount", quick=False)
def _(scene):
    """Over the cgroup.freeze of sleep's sidecar a copy of it is mounted."""
    place = pod(scene, "sleep").cgroup / "sidecar"
    with covered(place / "cgroup.freeze"):
        yield


# -- elsewhere than in its pod ---------------------------------------------------------------------------------------


@lie("{kind} of helloworld-v1 in another cgroup", "the {kind} of helloworld-v1 .*is in the cgroup .*elsewhere, not in", {"kind": ["sidecar", "app"]}, quick={"sidecar"})
def _(scene, kind):
    """The {kind} of helloworld-v1 is moved into a cgroup beside the lab's."""
    target = pod(scene, "helloworld-v1")
    pid = getattr(target, f"{kind}_pid")
    other = scene.lab.machine.cgroup.with_name(f"{scene.lab.machine.name}-elsewhere")
    other.mkdir()
    (other / "cgroup.procs").write_text(str(pid))
    yield
    target.ensure()  # as `up` does it
    target.wait_ready(15)
    other.rmdir()  # which tells that nobody is left there
