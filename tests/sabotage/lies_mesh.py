"""Lies about the mesh: sidecars, certificates, logs, apps."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import shutil
import signal
import socket
import struct
from dataclasses import replace
from pathlib import Path

from saboteur import again_and_again, lie

from merbridge_lab import istio_facts
from merbridge_lab.adapters import bpf_maps, cgroup, iptables
from merbridge_lab.adapters.command import run
from merbridge_lab.adapters.files import write_atomic
from merbridge_lab.dataplane.endpoints import netns_cookie
from merbridge_lab.dataplane.pins import Pins, u64
from merbridge_lab.labs.embedded import certificates, envoy, namespaces, topology
from merbridge_lab.polling import poll_until

PROXY = Path(__file__).with_name("plain_proxy.py")
LIAR = Path(__file__).with_name("lying_app.py")
BOTH = {"name": ["sleep", "helloworld-v1"]}


def pod(scene, name):
    return next(workload.pod for workload in scene.lab.workloads() if workload.name == name)


def pins(scene):
    return Pins(scene.lab.machine.bpffs / scene.lab.machine.name)


def link_of(scene, hook, name="sleep"):
    """Return where the link of a hook of a pod is pinned."""
    return pins(scene).link(str(netns_cookie(pod(scene, name).netns)), hook)


def links_of(scene, hook):
    """Return where the links of a hook are pinned, of all pods."""
    return [pin for pin in pins(scene).links() if pin.name == hook]


def end(target, kind="sidecar"):
    cgroup.clear(target.cgroup / kind, timeout=5)


def start(target, kind, argv):
    """Start `argv` in the pod as a process of that kind would run, in its cgroup, namespaces and user."""
    user = istio_facts.SIDECAR_UID if kind == "sidecar" else topology.APP_ID
    log = target.folder / "sabotage.log"
    run(namespaces.as_daemon(target.cgroup / kind, target.netns, target.mntns, user, log, argv))


def script(target, source, *words):
    """Put a script where the pod sees it; return its argv."""
    write_atomic(target.folder / source.name, source.read_text())
    return ["/usr/bin/python3", "-I", "-S", "-B", str(target.folder / source.name), *words]


def restart(target):
    end(target)
    target.processes.start("sidecar")
    target.wait_ready(15)


@contextlib.contextmanager
def configured(target, change):
    """Run the sidecar with its configuration changed by `change`, and restore the file so that it looks as before."""
    path = target.folder / "bootstrap.yaml"
    honest = path.read_text()
    altered = change(honest)
    assert altered != honest
    write_atomic(path, altered)
    restart(target)
    try:
        yield path, honest
    finally:
        write_atomic(path, honest)
        restart(target)


@lie("sidecar of {name} killed", "the sidecar of {name} is not running", BOTH, quick=False)
def _(scene, name):
    """The Envoy of {name} is killed."""
    end(pod(scene, name))
    yield


@lie("sidecar of {name} stopped", "the sidecar of {name} is stopped", BOTH, quick=False)
def _(scene, name):
    """The Envoy of {name} is stopped by SIGSTOP: its port accepts, and nobody answers."""
    os.kill(pod(scene, name).sidecar_pid, signal.SIGSTOP)
    yield


@lie("sidecar of {name} replaced by a plain proxy", "the sidecar of {name} has been replaced: .*plain_proxy.py", BOTH)
def _(scene, name):
    """A TCP proxy that knows neither TLS nor HTTP listens on 15001, 15006 and 15021 instead of {name}'s Envoy."""
    target = pod(scene, name)
    end(target)
    start(target, "sidecar", script(target, PROXY, "15001", "15006", "15021"))
    poll_until(lambda: envoy.is_ready(target.netns), timeout=5, awaiting="the proxy")
    yield


@lie("a proxy in front of Envoy", r"port 15001 of sleep is served by .*plain_proxy.py")
def _(scene):
    """Beside sleep's Envoy a plain proxy listens on 127.x.x.x:15001, which is where eBPF sends the app."""
    target = pod(scene, "sleep")
    where = f"{_door('10.96.0.10', 5000)}:15001"
    start(target, "sidecar", script(target, PROXY, where))
    poll_until(lambda: _listens(target, where), timeout=5, awaiting="the proxy")
    yield
    restart(target)


def _door(ip, port):
    """Return the address at which eBPF dials a sidecar for a destination: door() in bpf/connect.c."""
    (packed,) = struct.unpack("=I", socket.inet_aton(ip))
    mixed = (packed ^ port << 7) * 2654435761 & 0xFFFFFFFF
    return socket.inet_ntoa(struct.pack("!I", 0x7F800000 | mixed >> 9))


def _listens(target, where):
    return where in run(target.argv_as_root(["ss", "-Hltn"])).stdout


@lie("a proxy of another cgroup in front of Envoy", r"port 15006 of helloworld-v1 is served by .*plain_proxy.py")
def _(scene):
    """A plain proxy outside the pod's cgroup listens on the pod's own address, port 15006, in its network namespace."""
    target = pod(scene, "helloworld-v1")
    place = scene.lab.machine.cgroup / "twins" / "proxy"
    place.mkdir()
    argv = script(target, PROXY, f"{target.spec.ip}:15006")
    log = target.folder / "sabotage.log"
    run(namespaces.as_daemon(place, target.netns, target.mntns, istio_facts.SIDECAR_UID, log, argv))
    try:
        poll_until(lambda: _listens(target, f"{target.spec.ip}:15006"), timeout=5, awaiting="the proxy")
        yield
    finally:
        cgroup.remove(place, 5)


@lie(
    "PERMISSIVE instead of STRICT",
    r"the sidecar of helloworld-v1 runs with another configuration .*0\.0\.0\.0_5000_plain",
)
def _(scene):
    """helloworld-v1's sidecar lets plain text in beside mutual TLS; its configuration file looks as if it did not."""
    target = pod(scene, "helloworld-v1")
    permissive = envoy.render(replace(target.spec, permissive=True), target.folder)
    with configured(target, lambda _: permissive) as (path, honest):
        write_atomic(path, honest)
        yield


def _certified(scene, name, chain):
    """Install for `name` the certificates that `chain` creates from the lab's authority."""
    target = pod(scene, name)
    certs = target.folder / "certs"
    kept = certs.with_name("certs.kept")
    certs.rename(kept)
    chain(target, certs)
    _configure(target)
    restart(target)
    return target, certs, kept


def _configure(target):
    """Write the configuration that belongs to the certificates as they are now."""
    write_atomic(target.folder / "bootstrap.yaml", envoy.render(target.spec, target.folder))


def _put_back(target, certs, kept):
    shutil.rmtree(certs)
    kept.rename(certs)
    _configure(target)
    restart(target)


@lie(
    "certificate of {name} of a foreign authority",
    "the certificate of {name} is not issued by the lab's authority",
    BOTH,
)
def _(scene, name):
    """{name} has a certificate that an authority of its own has signed."""

    def foreign(target, folder):
        trusted = certificates.Authority.load(scene.lab.machine.run / "ca.pem")
        certificates.install(
            folder, target.spec.identity, authority=certificates.Authority.fresh(), trusted=trusted,
            owner=istio_facts.SIDECAR_UID,
        )  # fmt: skip

    changed = _certified(scene, name, foreign)
    yield
    _put_back(*changed)


@lie("certificate of {name} expired", "the certificate of {name} (is valid no more|expired)", BOTH)
def _(scene, name):
    """{name} has a certificate of the lab's authority that was valid until an hour ago."""

    def expired(target, folder):
        trusted = certificates.Authority.load(scene.lab.machine.run / "ca.pem")
        life, slack = certificates._LIFE, certificates._SLACK
        certificates._LIFE = dt.timedelta(hours=-1)
        try:
            certificates.install(
                folder, target.spec.identity, authority=trusted, trusted=trusted, owner=istio_facts.SIDECAR_UID
            )
        finally:
            certificates._LIFE, certificates._SLACK = life, slack

    changed = _certified(scene, name, expired)
    yield
    _put_back(*changed)


@lie("a sidecar under another's name", "the certificate of helloworld-v2 names .*helloworld-v1")
def _(scene):
    """helloworld-v2 has a certificate of the lab's authority that names helloworld-v1's account."""

    def other(_target, folder):
        trusted = certificates.Authority.load(scene.lab.machine.run / "ca.pem")
        identity = topology.spiffe("helloworld-v1")
        certificates.install(folder, identity, authority=trusted, trusted=trusted, owner=istio_facts.SIDECAR_UID)

    changed = _certified(scene, "helloworld-v2", other)
    yield
    _put_back(*changed)


@lie("inbound without client certificates", r"the sidecar of helloworld-v1 .*configuration.*require_client_certificate")
def _(scene):
    """helloworld-v1's sidecar was restarted with one line changed: whoever calls need not say who it is."""
    with configured(
        pod(scene, "helloworld-v1"),
        lambda text: text.replace("require_client_certificate: true", "require_client_certificate: false"),
    ) as (path, honest):
        write_atomic(path, honest)
        yield


@lie("inbound configuration altered on disk", "the configuration file of the sidecar of helloworld-v1 is not merlab's")
def _(scene):
    """helloworld-v1's inbound listener takes anything without TLS; the altered file lies there for all to see."""
    with configured(pod(scene, "helloworld-v1"), _plain_inbound):
        yield


def _plain_inbound(text):
    text = text.replace(", transport_protocol: tls }", " }", 1)
    return re.sub(
        r"      transport_socket:\n        name: envoy.transport_sockets.tls\n        typed_config:\n"
        r"          \"@type\": [^\n]*DownstreamTlsContext\n.*?(?=      filters:)",
        "",
        text,
        count=1,
        flags=re.DOTALL,
    )


@lie("x-request-id stripped by the sidecar", r"the sidecar of sleep .*configuration")
def _(scene):
    """sleep's sidecar puts a request id of its own in the place of the one that was asked with."""
    with configured(
        pod(scene, "sleep"),
        lambda text: text.replace("preserve_external_request_id: true", "preserve_external_request_id: false").replace(
            '  domains: ["*"]\n', '  domains: ["*"]\n              request_headers_to_remove: [x-request-id]\n', 1
        ),
    ) as (path, honest):
        write_atomic(path, honest)
        yield


@lie("sidecar restarted meanwhile", r"the sidecar of helloworld-v1 changed during verification")
def _(scene):
    """helloworld-v1's Envoy is restarted between step 9 and the matrix."""
    scene.at("matrix begins", lambda: restart(pod(scene, "helloworld-v1")))
    yield


@lie("access log of {name} frozen", "the access log of {name} is not the one that its sidecar writes", BOTH)
def _(scene, name):
    """{name}'s access log is a copy that nobody writes to; Envoy goes on writing to the file that was moved away."""
    log = pod(scene, name).access_log
    kept = log.with_name("elsewhere.log")
    log.rename(kept)
    write_atomic(log, kept.read_bytes(), owner=istio_facts.SIDECAR_UID)
    yield
    kept.replace(log)


@lie("access log forged", "the access log of sleep is not the one that its sidecar writes")
def _(scene):
    """sleep's real log is hidden; a forger appends lines with the nonces it sees there, and ports it invents."""
    log = pod(scene, "sleep").access_log
    kept = log.with_name("elsewhere.log")
    log.rename(kept)
    write_atomic(log, kept.read_bytes(), owner=istio_facts.SIDECAR_UID)
    seen = kept.stat().st_size

    def forge():
        nonlocal seen
        with kept.open() as file:
            file.seek(seen)
            new = file.read()
        if new.endswith("\n"):
            seen += len(new.encode())
            with log.open("a") as forged:
                forged.write(re.sub(r"(10\.244\.0\.10):\d+", r"\1:40000", new))

    with again_and_again(forge):
        yield
    kept.replace(log)


@lie("no sidecar in the path, and an app that says there is", r"helloworld-v[12]|sleep")
def _(scene):
    """No sidecar has a part in anything: no rules, no pods in the maps, an app that sends `server: envoy` itself."""
    lab = scene.lab
    from lies_dataplane import pins

    with pins(scene).open_map("pods") as pods:
        for workload in lab.workloads():
            bpf_maps.delete(pods, u64(netns_cookie(workload.pod.netns)))
            iptables.flush(workload.pod.netns, "nft", "nat")
    with pins(scene).open_map("listeners") as listeners:
        for workload in lab.workloads():
            bpf_maps.delete(listeners, u64(netns_cookie(workload.pod.netns)))
    for name in ("helloworld-v1", "helloworld-v2"):
        target = pod(scene, name)
        end(target, "app")
        start(target, "app", script(target, LIAR, name[-2:], name, str(topology.HTTP_PORT)))
        poll_until(lambda target=target: target._answers("app"), timeout=5, awaiting="the lying app")
    yield
    for name in ("helloworld-v1", "helloworld-v2"):
        end(pod(scene, name), "app")


@lie("an app that is another program", "the app of helloworld-v1 has been replaced: .*lying_app.py")
def _(scene):
    """helloworld-v1's app is another program, which sends `server: envoy` itself."""
    target = pod(scene, "helloworld-v1")
    end(target, "app")
    start(target, "app", script(target, LIAR, "v1", "helloworld-v1", str(topology.HTTP_PORT)))
    poll_until(lambda: target._answers("app"), timeout=5, awaiting="the lying app")
    yield
    end(target, "app")


@lie("one of two servers down", "the app of helloworld-v2 is not running", quick=False)
def _(scene):
    """helloworld-v2's app is killed; retries hide it from the client."""
    end(pod(scene, "helloworld-v2"), "app")
    yield


@lie("one of two servers stopped meanwhile", "helloworld v2 did not answer")
def _(scene):
    """helloworld-v2's app is killed between step 9 and the matrix."""
    scene.at("matrix begins", lambda: end(pod(scene, "helloworld-v2"), "app"))
    yield


@lie(
    "sleep in another pod's namespace",
    "the app of sleep has been replaced: .* in another network namespace",
    quick=False,
)
def _(scene):
    """The process in sleep's cgroup runs in helloworld-v1's network namespace."""
    sleep, other = pod(scene, "sleep"), pod(scene, "helloworld-v1")
    end(sleep, "app")
    log = sleep.folder / "sabotage.log"
    argv = ["sleep", "infinity"]
    run(namespaces.as_daemon(sleep.cgroup / "app", other.netns, other.mntns, topology.APP_ID, log, argv))
    yield


@lie("wrong virtual address", "/etc/hosts of sleep is not the one that merlab gave it")
def _(scene):
    """In sleep's /etc/hosts helloworld is helloworld-v1's own address."""
    path = pod(scene, "sleep").folder / "hosts"
    honest = path.read_text()
    # In place: the pod has exactly this file bind-mounted on its /etc/hosts.
    path.write_text(honest.replace("10.96.0.10", "10.244.0.11"))
    yield
    path.write_text(honest)


@lie("a pod's processes outside the dataplane's reach", "the sidecar of sleep .pid .* is in the cgroup .*twins")
def _(scene):
    """sleep's Envoy was moved to the twins' cgroup: what it dials, eBPF does not see."""
    target = pod(scene, "sleep")
    place = scene.lab.machine.cgroup / "twins" / "runaway"
    place.mkdir()
    (place / "cgroup.procs").write_text(str(target.sidecar_pid))
    yield
    cgroup.remove(place, 5)
