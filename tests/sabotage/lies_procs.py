"""Lies about processes: sockets with two holders, covered files of /proc, cgroups and namespaces that are left."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path

from lies_mesh import end, pod
from lies_pods import DEBUGGER
from lies_programs import LIBRARY, copied, environment, folder
from saboteur import lie

from merbridge_lab import istio_facts
from merbridge_lab.adapters import mounts
from merbridge_lab.adapters.command import run
from merbridge_lab.labs.embedded import namespaces, topology
from merbridge_lab.polling import poll_until

PYTHON = ["/usr/bin/python3", "-I", "-S"]


@contextlib.contextmanager
def helper(source, *words, prefix=()):
    """Run a script that prints one line when it is ready, and continues until its standard input is closed."""
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

#: Takes a duplicate of the socket that listens on a port of a process, and answers its connections.
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
    with helper(TAKER, target.app_pid, topology.HTTP_PORT, target.spec.name, "answer"):
        yield


@lie(
    "a listening socket of a sidecar that two hold",
    r"process \d+ \(.*helper.py.*\) holds a socket of the sidecar of sleep, too: .* port 15001",
    quick=False,
)
def _(scene):
    """A process of root's has a duplicate of a socket that sleep's Envoy listens on, and does nothing with it yet."""
    target = pod(scene, "sleep")
    with helper(TAKER, target.sidecar_pid, istio_facts.OUTBOUND_PORT, target.spec.name):
        yield


# -- covered files ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def covered(place, text=None):
    """Mount a copy of the current content of a kernel's file, or `text`, over that file."""
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


@lie(
    "a covered limit of a cgroup",
    "/sidecar/(cgroup.freeze|pids.max|cpu.max|cgroup.events) is covered by a mount",
    quick=False,
)
def _(scene):
    """Over the cgroup.freeze of sleep's sidecar a copy of it is mounted."""
    place = pod(scene, "sleep").cgroup / "sidecar"
    with covered(place / "cgroup.freeze"):
        yield


@lie("a covered folder of the lab", "/saved is covered by a mount that is not merlab's")
def _(scene):
    """Over the folder of the lab where saved rules are, another file system is mounted."""
    mounts.mount("none", scene.lab.machine.saved, "tmpfs", data="mode=0700")
    yield


# -- elsewhere than in its pod ---------------------------------------------------------------------------------------


@lie(
    "{kind} of helloworld-v1 in another cgroup",
    "the {kind} of helloworld-v1 .*is in the cgroup .*elsewhere, not in",
    {"kind": ["sidecar", "app"]},
    quick={"sidecar"},
)
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
    other.rmdir()  # which reports that nobody is left there


@lie(
    "sidecar of sleep in a mount namespace of its own",
    "the sidecar of sleep has been replaced: .*in another mount namespace",
)
def _(scene):
    """sleep's Envoy was started by `unshare --mount`: what is mounted for it, the pod does not show."""
    target = pod(scene, "sleep")
    end(target)
    argv = target.processes._argv("sidecar")
    log = target.folder / "sabotage.log"
    # unshare as root, then the user, as merlab does.
    inside = ["nsenter", f"--net={target.netns}", f"--mount={target.mntns}", "unshare", "--mount", "setpriv",
              f"--reuid={istio_facts.SIDECAR_UID}", f"--regid={istio_facts.SIDECAR_UID}", "--clear-groups",
              "env", "-i", *sorted(namespaces.ENVIRONMENT), *argv]  # fmt: skip
    run(["sh", "-c", namespaces._DAEMON, str(target.cgroup / "sidecar"), str(log), *inside])
    assert poll_until(lambda: target._answers("sidecar"), timeout=10, awaiting="the sidecar")
    yield


@lie(
    "a debugger in one thread of a sidecar", r"the sidecar of sleep has been replaced: .*its thread \d+ has a debugger"
)
def _(scene):
    """A debugger is attached to one worker of sleep's Envoy, which runs on, and not to its first thread."""
    pid = pod(scene, "sleep").sidecar_pid
    thread = max(int(each.name) for each in Path(f"/proc/{pid}/task").iterdir())
    with helper(DEBUGGER, thread):
        yield


# -- what a process says of itself -----------------------------------------------------------------------------------

#: Shows the command line of helloworld's app, and is another script. The first word is how: "wrote" overwrites what
#: exec left, which took more bytes, and writes zeroes behind it; "moved" tells the kernel that it is elsewhere.
IMPOSTOR = """
import ctypes, os, struct, sys
how, user, honest, rest = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
wanted = b"".join(word.encode() + b"\\0" for word in rest)
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
begins, ends, others_begin, others_end = map(int, fields[45:49])
libc = ctypes.CDLL(None, use_errno=True)
if how == "moved":
    text = ctypes.create_string_buffer(wanted)
    place = ctypes.addressof(text)
    libc.sbrk.restype = ctypes.c_void_p
    code, data, heap = map(int, fields[23:25]), map(int, fields[42:44]), int(fields[44])
    told = struct.pack("=12QII", *code, *data, heap, libc.sbrk(0), int(fields[25]), place, place + len(wanted),
                       others_begin, others_end, 0, 0, 0xFFFFFFFF)
    assert libc.prctl(35, 14, told, len(told), 0) == 0, ctypes.get_errno()
else:
    memory = open("/proc/self/mem", "r+b", buffering=0)
    memory.seek(begins)
    memory.write(wanted.ljust(ends - begins, b"\\0"))
os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
source = open(honest).read()
altered = source.replace('transport.get_extra_info("peername")[0].encode()', 'b"127.0.0.6"')
assert altered != source
sys.argv = rest[4:]
exec(compile(altered, rest[4], "exec"))
"""


@lie(
    "an app whose command line was {how}",
    "the app of helloworld-v2 has been replaced: .*(command line was moved in its memory|has overwritten it)",
    {"how": ["moved", "written over"]},
    quick={"written over"},
)
def _(scene, how):
    """helloworld-v2's app is a script that lies about its peers; the command line that it shows is right: {how}."""
    target = pod(scene, "helloworld-v2")
    end(target, "app")
    (target.folder / "impostor.py").write_text(IMPOSTOR)
    shown = target.processes._argv("app")
    argv = ["/usr/bin/python3", "-I", "-S", "-B", str(target.folder / "impostor.py"), how.split()[0],
            str(topology.APP_ID), str(target.folder / "app.py"), *shown]  # fmt: skip
    log = target.folder / "sabotage.log"
    run(namespaces.as_daemon(target.cgroup / "app", target.netns, target.mntns, 0, log, argv))
    assert poll_until(lambda: target._answers("app"), timeout=10, awaiting="the app"), log.read_text()
    yield
    (target.folder / "impostor.py").unlink()


# -- merlab's own process --------------------------------------------------------------------------------------------


@lie("a module of PYTHONPATH in merlab", r"shadow.py is loaded into merlab itself \(PYTHONPATH\)")
def _(_scene):
    """A module that merlab has imported is of a directory that root's PYTHONPATH names."""
    with folder() as into:
        (into / "shadow.py").write_text("")
        found = importlib.util.spec_from_file_location("merlab_shadow", into / "shadow.py")
        sys.modules["merlab_shadow"] = importlib.util.module_from_spec(found)
        try:
            with environment(PYTHONPATH=str(into)):
                yield
        finally:
            del sys.modules["merlab_shadow"]


@lie("a library of LD_LIBRARY_PATH in merlab", r"elsewhere.so is loaded into merlab itself \(LD_LIBRARY_PATH\)")
def _(_scene):
    """A library that merlab has loaded is of a directory that root's LD_LIBRARY_PATH names."""
    with folder() as into:
        # It stays loaded; that is reported only while the environment has it.
        library = copied(LIBRARY, into).rename(into / "elsewhere.so")
        ctypes.CDLL(str(library))
        with environment(LD_LIBRARY_PATH=str(into)):
            yield
