"""Lies about whom a sidecar trusts and who it is, and about the places where merlab keeps what it makes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from lies_mesh import configured, end, pod, restart, start
from lies_pods import by_hand
from lies_programs import copied, environment, folder
from saboteur import lie

from merbridge_lab.adapters import cgroup, mounts, tcp
from merbridge_lab.adapters.files import put
from merbridge_lab.drivers.embedded import certificates, layout, programs, sidecar

_SIDECARS = {"name": ["sleep", "helloworld-v1"]}


def _roots(target):
    """The place of what a sidecar trusts, and what is there."""
    path = target.folder / sidecar.CERTIFICATES / "root-cert.pem"
    return path, path.read_text()


@lie(
    "a foreign authority in what {name} is started with",
    "the sidecar of {name} runs with another configuration .*2 certificates of SHA-256 .*, not 1 certificate of",
    _SIDECARS,
)
def _(scene, name):
    """{name}'s sidecar is started with a second authority in its configuration; its files then look as before."""
    target = pod(scene, name)
    _, honest = _roots(target)
    old, new = (json.dumps(text) for text in (honest, honest + certificates.Authority.fresh().certificate.decode()))
    with configured(target, lambda text: text.replace(old, new)) as (path, whole):
        put(path, whole)
        yield


@lie(
    "a foreign authority in a file while {name} starts",
    "the sidecar of {name} runs with another configuration .*trusted_ca.*(inline_string|filename)",
    _SIDECARS,
)
def _(scene, name):
    """{name}'s sidecar reads whom it trusts from a file that has a second authority while it starts."""
    target = pod(scene, name)
    path, honest = _roots(target)
    more = honest + certificates.Authority.fresh().certificate.decode()
    put(path, more, mode=0o400, owner=layout.SIDECAR_ID)
    inline, file = f"inline_string: {json.dumps(honest)}", f"filename: {path}"
    with configured(target, lambda text: text.replace(inline, file)) as (bootstrap, whole):
        put(path, honest, mode=0o400, owner=layout.SIDECAR_ID)
        put(bootstrap, whole)
        yield


@lie(
    "another key and certificate while {name} starts",
    "the sidecar of {name} runs with another configuration .*certificate_chain",
    _SIDECARS,
)
def _(scene, name):
    """{name}'s sidecar is started with another certificate of its name, of which somebody kept the key."""
    target = pod(scene, name)
    certs = target.folder / sidecar.CERTIFICATES
    kept, whole = certs.with_name("certs.kept"), target.folder / "bootstrap.yaml"
    honest = whole.read_text()
    certs.rename(kept)
    lab = certificates.Authority.load(scene.lab.machine.run / "ca.pem")
    certificates.install(certs, target.spec.identity, authority=lab, trusted=lab, owner=layout.SIDECAR_ID)
    put(whole, sidecar.render(target.spec, target.folder))
    restart(target)
    shutil.rmtree(certs)
    kept.rename(certs)
    put(whole, honest)
    yield
    restart(target)


@lie("two servers that have changed their names", "the certificate of helloworld-v1 names .*helloworld-v2")
def _(scene):
    """helloworld-v1 and helloworld-v2 run with each other's certificate and key, in files and in memory."""
    pair = [pod(scene, name) for name in ("helloworld-v1", "helloworld-v2")]
    one, other = (each.folder / sidecar.CERTIFICATES for each in pair)

    def change():
        aside = one.with_name("certs.kept")
        one.rename(aside)
        other.rename(one)
        aside.rename(other)
        for each in pair:
            put(each.folder / "bootstrap.yaml", sidecar.render(each.spec, each.folder))
            restart(each)

    change()
    yield
    change()


# -- places ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _covered(target, source, fstype=None):
    """Mount something over `target`, and see that it is there."""
    mounts.mount(source, target, fstype, 0 if fstype else mounts.MS_BIND)
    assert sum(each.target == target for each in mounts.table()) > 1 or fstype or source.exists()
    try:
        yield
    finally:
        if mounts.at(target) is not None and mounts.at(target) in _above(target):
            mounts.umount(target)


def _above(target):
    return [each for each in mounts.table() if each.target == target][1:]


@lie(
    "the network namespace of {other} over sleep's",
    "/netns/sleep is covered by a mount that is not merlab's .nsfs, net:",
    {"other": ["helloworld-v1", "node"]},
)
def _(scene, other):
    """The network namespace of {other} is mounted over the pin of sleep's."""
    machine = scene.lab.machine
    with _covered(machine.netns("sleep"), machine.netns(other)):
        yield


@lie("the machine's network namespace over sleep's", "/netns/sleep is covered by a mount that is not merlab's")
def _(scene):
    """The machine's own network namespace is mounted over the pin of sleep's."""
    with _covered(scene.lab.machine.netns("sleep"), Path("/proc/self/ns/net")):
        yield


@lie("a pin put in another's place", "/netns/helloworld-v2 leads to the same namespace as .*/netns/helloworld-v1")
def _(scene):
    """The pin of helloworld-v2's network namespace is taken away, and helloworld-v1's is mounted there."""
    pin = scene.lab.machine.netns("helloworld-v2")
    mounts.umount(pin)
    mounts.bind(scene.lab.machine.netns("helloworld-v1"), pin)
    yield


@lie("the machine's namespace in a pin's place", "/netns/sleep leads to the network namespace of the machine itself")
def _(scene):
    """The pin of sleep's network namespace is taken away, and the machine's is mounted there."""
    pin = scene.lab.machine.netns("sleep")
    mounts.umount(pin)
    mounts.bind("/proc/self/ns/net", pin)
    yield


@lie(
    "a file system over the lab's {place}",
    "{place} is covered by a mount that is not merlab's .tmpfs, /",
    {"place": ["netns", "mnt", "bpf", "saved", "pods", "pods/sleep", "pods/helloworld-v1/certs"]},
    quick=False,
)
def _(scene, place):
    """An empty file system is mounted on {place} in the lab's directory."""
    with _covered(scene.lab.machine.run / place, "none", "tmpfs"):
        yield


@lie("a file system over the lab's directory", "/run/merlab-[a-z0-9]+ is covered by a mount that is not merlab's")
def _(scene):
    """An empty file system is mounted on the lab's whole directory."""
    with _covered(scene.lab.machine.run, "none", "tmpfs"):
        yield


@lie("a file system over the pods' cgroup", "/mesh is covered by a mount that is not merlab's")
def _(scene):
    """An empty file system is mounted on the cgroup of the pods."""
    mounts.mount("none", scene.lab.machine.mesh_cgroup, "tmpfs")
    try:
        yield
    finally:
        if mounts.at(scene.lab.machine.mesh_cgroup) is not None:
            mounts.umount(scene.lab.machine.mesh_cgroup)


@lie("saved rules covered by an empty folder", "/saved is covered by a mount that is not merlab's")
def _(scene):
    """sleep is flushed, and the save of its rules is hidden by another folder of the lab's."""
    with _covered(scene.lab.machine.saved, scene.lab.machine.run / "mnt"):
        yield


@lie(
    "a link in the place of the lab's {place}",
    "{place} is a symbolic link",
    {"place": ["netns", "saved", "pods/sleep", "pods/helloworld-v1/access.log", "ca.pem"]},
    quick={"netns", "pods/sleep"},
)
def _(scene, place):
    """What is at {place} in the lab's directory lies elsewhere, and a symbolic link leads there."""
    path = scene.lab.machine.run / place
    aside = path.with_name(f"{path.name}.elsewhere")
    path.rename(aside)
    path.symlink_to(aside)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        aside.rename(path)


@lie("an access log that is a FIFO", "access.log is a FIFO")
def _(scene):
    """helloworld-v1's access log goes into a FIFO, whose other end somebody has."""
    log = pod(scene, "helloworld-v1").access_log
    log.unlink()
    os.mkfifo(log)
    yield
    log.unlink(missing_ok=True)


# -- sockets ---------------------------------------------------------------------------------------------------------

HOLDER = Path(__file__).with_name("socket_holder.py")


@lie(
    "listener {port} of {name} held by another process",
    r"the listener on port {port} of {name} is also held by .*socket_holder.py",
    {"name": ["sleep", "helloworld-v1"], "port": ["15001", "15006"]},
    quick={"15006"},
)
def _(scene, name, port):
    """A process of root's has the listeners on port {port} of {name}'s sidecar open as well (pidfd_getfd)."""
    target = pod(scene, name)
    inodes = [str(each.inode) for each in tcp.listening(target.netns) if str(each.port) == port]
    argv = ["/usr/bin/python3", str(HOLDER), str(target.sidecar_pid), *inodes]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as thief:
        assert thief.stdout.readline() == "held\n"
        try:
            yield
        finally:
            thief.kill()


# -- what merlab reads of a process -----------------------------------------------------------------------------------


@lie(
    "an app whose {file} in /proc is covered",
    r"the app of helloworld-v2 could not be read: /proc/\d+/{file} is covered by a mount",
    {"file": ["environ", "status"]},
)
def _(scene, file):
    """helloworld-v2's app is started with a library put before its own; over {file} of it is one of an honest app's."""
    target = pod(scene, "helloworld-v2")
    honest = Path(f"/proc/{target.app_pid}/{file}").read_bytes()
    end(target, "app")
    by_hand(target, prefix=("env", "LD_PRELOAD=libm.so.6") if file == "environ" else ())
    (pid,) = cgroup.processes(target.cgroup / "app")
    place, copy = Path(f"/proc/{pid}/{file}"), target.folder / f"{file}.copy"
    put(copy, honest)
    mounts.bind(copy, place)
    try:
        yield
    finally:
        mounts.umount(place)
        copy.unlink()
        end(target, "app")


def _wipe(pid, word, instead):
    """Write over what the environment of process `pid` says of `word`, as the process itself could."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    start = int(fields[47])  # env_start; proc_pid_stat(5) counts from 1, and two fields come before
    text = Path(f"/proc/{pid}/environ").read_bytes()
    entry = next(each for each in text.split(b"\0") if each.startswith(word))
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(start + text.index(entry))
        memory.write((instead * len(entry))[: len(entry)])


@lie(
    "a library in a sidecar, {how} in its environment",
    "the sidecar of sleep has been replaced: .*its environment (was written over|is not merlab's)",
    {"how": ["wiped out", "written over"]},
)
def _(scene, how):
    """sleep's Envoy was started with a library of the system's before its own; its environment then was {how}."""
    target = pod(scene, "sleep")
    end(target)
    # Colons say nothing here: with three of them "HOME=/" fits in five times.
    start(target, "sidecar", ["env", "LD_PRELOAD=libBrokenLocale.so.1:::", *target.processes._argv("sidecar")])
    target.wait_ready(15)
    (pid,) = cgroup.processes(target.cgroup / "sidecar")
    assert "libBrokenLocale" in Path(f"/proc/{pid}/maps").read_text()
    _wipe(pid, b"LD_PRELOAD", b"\0" if how == "wiped out" else b"HOME=/\0")
    yield
    restart(target)


# -- what merlab itself is made of ------------------------------------------------------------------------------------


@lie("another BCC, first in LD_LIBRARY_PATH", "libbcc.so.0 stands in for /usr/lib.*/libbcc.so.0 .LD_LIBRARY_PATH")
def _(_scene):
    """Root's LD_LIBRARY_PATH leads to another BCC, which would say what merlab's programs must be."""
    system = next(each for each in programs._SYSTEMS if (each / "libbcc.so.0").exists())
    with folder() as into, environment(LD_LIBRARY_PATH=str(into)):
        copied(system / "libbcc.so.0", into)
        yield
