"""Lies about whom a sidecar trusts and who it is, and about the places where merlab stores its files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

from lies_mesh import configured, pod, restart
from saboteur import lie

from merbridge_lab import istio_facts
from merbridge_lab.adapters import mounts
from merbridge_lab.adapters.files import write_atomic
from merbridge_lab.labs.embedded import certificates, envoy

_SIDECARS = {"name": ["sleep", "helloworld-v1"]}


def _roots(target):
    """Return where a sidecar reads whom it trusts, and the content."""
    path = target.folder / envoy.CERTIFICATES / "root-cert.pem"
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
        write_atomic(path, whole)
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
    write_atomic(path, more, mode=0o400, owner=istio_facts.SIDECAR_UID)
    inline, file = f"inline_string: {json.dumps(honest)}", f"filename: {path}"
    with configured(target, lambda text: text.replace(inline, file)) as (bootstrap, whole):
        write_atomic(path, honest, mode=0o400, owner=istio_facts.SIDECAR_UID)
        write_atomic(bootstrap, whole)
        yield


@lie(
    "another key and certificate while {name} starts",
    "the sidecar of {name} runs with another configuration .*certificate_chain",
    _SIDECARS,
)
def _(scene, name):
    """{name}'s sidecar is started with another certificate of its name, of which somebody kept the key."""
    target = pod(scene, name)
    certs = target.folder / envoy.CERTIFICATES
    kept, whole = certs.with_name("certs.kept"), target.folder / "bootstrap.yaml"
    honest = whole.read_text()
    certs.rename(kept)
    lab = certificates.Authority.load(scene.lab.machine.run / "ca.pem")
    certificates.install(certs, target.spec.identity, authority=lab, trusted=lab, owner=istio_facts.SIDECAR_UID)
    write_atomic(whole, envoy.render(target.spec, target.folder))
    restart(target)
    shutil.rmtree(certs)
    kept.rename(certs)
    write_atomic(whole, honest)
    yield
    restart(target)


@lie("two servers that have changed their names", "the certificate of helloworld-v1 names .*helloworld-v2")
def _(scene):
    """helloworld-v1 and helloworld-v2 run with each other's certificate and key, in files and in memory."""
    pair = [pod(scene, name) for name in ("helloworld-v1", "helloworld-v2")]
    one, other = (each.folder / envoy.CERTIFICATES for each in pair)

    def change():
        aside = one.with_name("certs.kept")
        one.rename(aside)
        other.rename(one)
        aside.rename(other)
        for each in pair:
            write_atomic(each.folder / "bootstrap.yaml", envoy.render(each.spec, each.folder))
            restart(each)

    change()
    yield
    change()


# -- places ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _covered(target, source, fstype=None):
    """Mount something over `target`, and check that it is there."""
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
