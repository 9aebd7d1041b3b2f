"""Lies about the parts of pods: programs that pass for others, ways around, settings, limits, files, clocks."""

from __future__ import annotations

import contextlib
import datetime as dt
import signal
import subprocess
import sys

from lies_mesh import _certified, _put_back, end, pod
from saboteur import lie

from merbridge_lab import istio_facts
from merbridge_lab.adapters import cgroup, netns, system_tools
from merbridge_lab.adapters.command import run
from merbridge_lab.adapters.files import write_atomic
from merbridge_lab.adapters.mounts import bind, umount
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import certificates, namespaces, rule_templates, topology
from merbridge_lab.polling import poll_until

HONEST = rule_templates.data("app/helloworld.py")
ALTERED = HONEST.replace("Hello version:", "Hello from nobody, version:")


def at(target, *argv):
    """Run a command of the machine's in the pod's network namespace."""
    run(target.argv_as_root(list(argv)))


def at_node(scene, *argv):
    run(namespaces.as_root(scene.lab._node.netns, list(argv)))


def by_hand(target, user=topology.APP_ID, prefix=()):
    """Start helloworld's app as merlab does, except for the user and the given prefix."""
    argv = [*prefix, *target.processes._argv("app")]
    log = target.folder / "sabotage.log"
    run(namespaces.as_daemon(target.cgroup / "app", target.netns, target.mntns, user, log, argv))
    assert poll_until(lambda: target._answers("app"), timeout=10, awaiting="the app")


# -- programs that pass for others (P2) ------------------------------------------------------------------------------


@lie("an altered app started by root", "the app of helloworld-v1 has been replaced: .*it runs as user 0, not 65534")
def _(scene):
    """helloworld-v1's app.py is altered, and started by hand with the same command line, as root."""
    target = pod(scene, "helloworld-v1")
    end(target, "app")
    write_atomic(target.folder / "app.py", ALTERED)
    by_hand(target, user=0)
    yield


@lie("an altered app", "the app of helloworld-v1 has been replaced: .*app.py is not what merlab put there")
def _(scene):
    """helloworld-v1's app.py is altered, and started by hand just as merlab would."""
    target = pod(scene, "helloworld-v1")
    end(target, "app")
    write_atomic(target.folder / "app.py", ALTERED)
    by_hand(target)
    yield


@lie("an altered app, its file put back", "the app of helloworld-v1 .*app.py was written after it had started")
def _(scene):
    """helloworld-v1's app.py is altered, started, and put back, so that all files look as they should."""
    target = pod(scene, "helloworld-v1")
    end(target, "app")
    path = target.folder / "app.py"
    path.write_text(ALTERED)
    by_hand(target)
    path.write_text(HONEST)
    yield


@lie("an app with a library put before its own", "the app of helloworld-v2 .*environment is not merlab's: LD_PRELOAD")
def _(scene):
    """helloworld-v2's app is started with LD_PRELOAD."""
    target = pod(scene, "helloworld-v2")
    end(target, "app")
    by_hand(target, prefix=("env", "LD_PRELOAD=libm.so.6"))
    yield


#: PTRACE_SEIZE, and held until the end: the traced process continues as if nothing had happened.
DEBUGGER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(0x4206, int(sys.argv[1]), None, None) == 0, ctypes.get_errno()
print("held", flush=True)
sys.stdin.read()
"""


@lie("a debugger in a sidecar", "the sidecar of sleep has been replaced: .*is attached to it as a debugger")
def _(scene):
    """A debugger is attached to sleep's Envoy, which runs on."""
    argv = [sys.executable, "-I", "-c", DEBUGGER, str(pod(scene, "sleep").sidecar_pid)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as debugger:
        assert debugger.stdout.readline() == "held\n"
        yield
        debugger.stdin.close()


@lie("root in an app's cgroup", "in the cgroup of the app of sleep runs another process, .*sleep 300")
def _(scene):
    """A process of root's with capabilities runs in the cgroup of sleep's app, beside it."""
    target = pod(scene, "sleep")
    argv = ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec sleep 300', str(target.cgroup / "app")]
    with subprocess.Popen(argv) as other:
        assert poll_until(
            lambda: other.pid in cgroup.processes(target.cgroup / "app"), timeout=5, awaiting="the stranger"
        )
        yield
        other.kill()


# -- ways around (P4) ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _second_link(scene):
    """Link sleep and helloworld-v1 with each other, past the node."""
    sleep, other = pod(scene, "sleep"), pod(scene, "helloworld-v1")
    at(sleep, "ip", "link", "add", "detour", "type", "veth", "peer", "name", "detour", "netns", str(other.netns))
    for one, far in ((sleep, other), (other, sleep)):
        at(one, "ip", "link", "set", "detour", "up")
        at(one, "ip", "route", "add", f"{far.spec.ip}/32", "dev", "detour")
    yield
    at(sleep, "ip", "link", "del", "detour")


@lie("a second link between two pods", r"the network namespace of sleep has a link .*: detour \(veth\)")
def _(scene):
    """sleep and helloworld-v1 are linked by a second veth, with routes around the node."""
    with _second_link(scene):
        yield


WAYS = {
    "policy routing": (
        ["ip", "rule", "add", "to", "10.244.0.11", "lookup", "100"],
        "a rule that is not merlab's: 32765: ipv4 table 100",
    ),
    "a route of another table": (
        ["ip", "route", "add", "10.244.0.11/32", "via", "10.244.0.1", "table", "100"],
        "a route that is not merlab's: unicast 10.244.0.11/32 dev eth0 table 100",
    ),
    "a route to nowhere": (
        ["ip", "route", "add", "blackhole", "10.244.0.12/32"],
        "a route that is not merlab's: blackhole 10.244.0.12/32",
    ),
    "a macvlan": (
        ["ip", "link", "add", "aside", "link", "eth0", "type", "macvlan", "mode", "bridge"],
        r"a link that is not merlab's: aside \(macvlan\)",
    ),
    "a tunnel": (
        ["ip", "link", "add", "tunl0", "type", "veth", "peer", "name", "aside"],
        r"a link that is not merlab's: (aside|tunl0) \(veth\)",
    ),
    "a service's address on lo": (
        ["ip", "address", "add", "10.96.0.10/32", "dev", "lo"],
        "an address that is not merlab's: 10.96.0.10/32 dev lo",
    ),
    "a link-local address": (
        ["ip", "-6", "address", "add", "fe80::1/64", "dev", "eth0"],
        "an address that is not merlab's: fe80::1/64 dev eth0",
    ),
    "a neighbour set by hand": (
        ["ip", "neighbour", "replace", "10.244.0.1", "lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent"],
        "a neighbour that is not merlab's: 10.244.0.1 at 02:00:00:00:00:01 dev eth0, set by hand",
    ),
    "a neighbour told wrongly": (
        ["ip", "neighbour", "replace", "10.244.0.1", "lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "reachable"],
        "a neighbour that is not merlab's: 10.244.0.1 at 02:00:00:00:00:01 dev eth0",
    ),
    "somebody else's address answered for": (
        ["ip", "neighbour", "add", "proxy", "10.244.0.11", "dev", "eth0"],
        "a neighbour that is not merlab's: proxy",
    ),
    "a place for filters": (
        ["tc", "qdisc", "add", "dev", "eth0", "clsact"],
        "a queueing discipline that is not merlab's: clsact dev eth0",
    ),
    "IPsec": (
        [
            "ip",
            "xfrm",
            "policy",
            "add",
            "dir",
            "out",
            "src",
            "10.244.0.10/32",
            "dst",
            "192.0.2.1/32",
            "action",
            "block",
        ],
        "an IPsec rule that is not merlab's: policy 0",
    ),
    "a route as older kernels have it, elsewhere": (
        ["ip", "route", "add", "broadcast", "127.0.0.0/32", "dev", "eth0", "table", "local"],
        "a route that is not merlab's: broadcast 127.0.0.0/32 dev eth0 table local",
    ),
}


def _register(way, argv, cause):
    def sabotage(scene):
        at(pod(scene, "sleep"), *argv)
        yield

    sabotage.__doc__ = f"In sleep's network namespace there is {way}: {' '.join(argv)}."
    quick = way in {"policy routing", "a tunnel", "a neighbour told wrongly", "IPsec"}
    lie(f"{way} in sleep", cause, quick=quick)(sabotage)


for _way, (_argv, _cause) in WAYS.items():
    _register(_way, _argv, _cause)


#: An allowed difference between a lab and what merlab creates, and the lie that hides behind it.
HIDDEN = {
    "IPv6": "a link-local address in sleep",
    "tunnels at rest": "a tunnel in sleep",
    "other kernels": "a route as older kernels have it, elsewhere in sleep",
    "learnt neighbours": "a neighbour told wrongly in sleep",
}


@lie("a link of a twin that is not there", r"the node's network namespace has a link .*: veth100 \(veth\)")
def _(scene):
    """The node has a link by a twin's name, and no twin is there."""
    at_node(scene, "ip", "link", "add", "veth100", "type", "veth", "peer", "name", "aside")
    yield
    with contextlib.suppress(LabError):  # a control client of that name was created and removed meanwhile
        at_node(scene, "ip", "link", "del", "veth100")


# -- settings of the kernel ------------------------------------------------------------------------------------------

SETTINGS = {
    "net.ipv4.conf.eth0.route_localnet": "1",
    "net.ipv4.conf.eth0.accept_local": "1",
    "net.ipv4.tcp_l3mdev_accept": "1",
    "net.ipv4.ip_nonlocal_bind": "1",
    "net.netfilter.nf_conntrack_tcp_be_liberal": "1",
    "net.ipv4.ip_forward": "1",
}


@lie(
    "{setting} set in helloworld-v1",
    r"in the network namespace of helloworld-v1 .* is \d+, not \d+",
    {"setting": [*SETTINGS]},
    quick={"net.ipv4.conf.eth0.route_localnet", "net.netfilter.nf_conntrack_tcp_be_liberal"},
)
def _(scene, setting):
    """{setting} is changed in helloworld-v1's network namespace."""
    at(pod(scene, "helloworld-v1"), "sysctl", "-q", "-w", f"{setting}={SETTINGS[setting]}")
    yield


@lie("a setting of the node", "in the node's network namespace ipv4/conf/all/rp_filter is 1, not 0")
def _(scene):
    """The node drops what comes in by another link than it would go out by."""
    at_node(scene, "sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=1")
    yield


# -- listeners -------------------------------------------------------------------------------------------------------

LISTEN = (
    "import socket, sys; s = socket.create_server(('', int(sys.argv[1]))); print('there', flush=True); sys.stdin.read()"
)


@contextlib.contextmanager
def _listening(where, port, *prefix):
    argv = [*prefix, *namespaces.as_root(where, [sys.executable, "-I", "-c", LISTEN, str(port)])]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout.readline() == "there\n"
        yield
        listener.stdin.close()


@lie("a listener in the node", "a process listens on port 8080 in the node")
def _(scene):
    """A process listens in the node."""
    with _listening(scene.lab._node.netns, 8080):
        yield


@lie("a stranger's listener in a pod", r"port 8080 of sleep is served by .*, which is not the pod's")
def _(scene):
    """A process of root's, of no cgroup of the lab's, listens in sleep's network namespace."""
    with _listening(pod(scene, "sleep").netns, 8080):
        yield


@lie("a stranger's listener by the app's user", r"port 8080 of sleep is served by .*, which is not the pod's")
def _(scene):
    """A process of the app's user, of no cgroup of the lab's, listens in sleep's network namespace."""
    argv = ["nsenter", f"--net={pod(scene, 'sleep').netns}", "--setuid=65534", "--setgid=65534"]
    argv += ["/usr/bin/python3", "-I", "-c", LISTEN, "8080"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout.readline() == "there\n"
        yield
        listener.stdin.close()


# -- what stands still, and what is scarce (P8) ----------------------------------------------------------------------


@lie("app of {name} frozen", "the app of {name} is frozen", {"name": ["sleep", "helloworld-v1"]})
def _(scene, name):
    """The cgroup of {name}'s app is frozen."""
    (pod(scene, name).cgroup / "app" / "cgroup.freeze").write_text("1")
    yield


@lie("app of sleep frozen meanwhile", "the app of sleep is frozen", quick=False)
def _(scene):
    """The cgroup of sleep's app is frozen between step 9 and the matrix."""
    path = pod(scene, "sleep").cgroup / "app" / "cgroup.freeze"
    scene.at("matrix begins", lambda: path.write_text("1"))
    yield


@lie("all pods frozen", "the cgroup .*/mesh is limited: cgroup.freeze is 1")
def _(scene):
    """The cgroup above all pods is frozen."""
    (scene.lab.machine.mesh_cgroup / "cgroup.freeze").write_text("1")
    yield


@lie("app of sleep stopped", "the app of sleep is stopped")
def _(scene):
    """sleep's app is stopped by SIGSTOP; it has nothing to do anyway."""
    import os

    os.kill(pod(scene, "sleep").app_pid, signal.SIGSTOP)
    yield


@lie("few files for a sidecar", "the sidecar of sleep .*its limit is 60 open files")
def _(scene):
    """sleep's Envoy may open 60 files and no more."""
    target = pod(scene, "sleep")
    end(target)
    argv = ["prlimit", "--nofile=60:60", *target.processes._argv("sidecar")]
    log = target.folder / "sabotage.log"
    run(namespaces.as_daemon(target.cgroup / "sidecar", target.netns, target.mntns, istio_facts.SIDECAR_UID, log, argv))
    assert poll_until(lambda: target._answers("sidecar"), timeout=10, awaiting="the sidecar")
    yield


# -- certificates and clocks (P8) ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _at_another_time(life, slack):
    before = certificates._LIFE, certificates._SLACK
    certificates._LIFE, certificates._SLACK = life, slack
    try:
        yield
    finally:
        certificates._LIFE, certificates._SLACK = before


DAY = dt.timedelta(days=1)


@lie("the authority expired", "the certificate of the lab's authority expired at")
def _(scene):
    """The lab was made 366 days ago: its authority is valid no more; the pods' certificates were made later."""
    path = scene.lab.machine.run / "ca.pem"
    kept = path.read_bytes()
    with _at_another_time(-DAY, 366 * DAY):
        expired = certificates.Authority.fresh()
    write_atomic(path, certificates._pem(expired._key) + expired.certificate, mode=0o600)

    def signed(target, folder):
        certificates.install(
            folder, target.spec.identity, authority=expired, trusted=expired, owner=istio_facts.SIDECAR_UID
        )  # fmt: skip

    changed = _certified(scene, "sleep", signed)
    yield
    write_atomic(path, kept, mode=0o600)
    _put_back(*changed)


@lie("certificate of sleep not valid yet", "the certificate of sleep is valid from")
def _(scene):
    """sleep has a certificate of the lab's authority that is valid from the day after tomorrow on."""

    def early(target, folder):
        trusted = certificates.Authority.load(scene.lab.machine.run / "ca.pem")
        with _at_another_time(3 * DAY, -2 * DAY):
            certificates.install(
                folder, target.spec.identity, authority=trusted, trusted=trusted, owner=istio_facts.SIDECAR_UID
            )

    changed = _certified(scene, "sleep", early)
    yield
    _put_back(*changed)


@lie("a sidecar that trusts another authority", "sleep trusts another authority than the lab's")
def _(scene):
    """sleep's certificate is good, but the authority with which it judges others is not the lab's."""

    def trusting(target, folder):
        trusted = certificates.Authority.load(scene.lab.machine.run / "ca.pem")
        other = certificates.Authority.fresh()
        certificates.install(
            folder, target.spec.identity, authority=trusted, trusted=other, owner=istio_facts.SIDECAR_UID
        )  # fmt: skip

    changed = _certified(scene, "sleep", trusting)
    yield
    _put_back(*changed)


# -- files that merlab and its tools read ----------------------------------------------------------------------------


@contextlib.contextmanager
def _covered(target, source, over):
    """Bind a file over another one in the pod's mount namespace."""
    netns.run_inside(target.mntns, lambda: bind(source, over), netns.NEWNS)
    try:
        yield
    finally:
        netns.run_inside(target.mntns, lambda: umount(over), netns.NEWNS)


@lie("names asked elsewhere first", "/etc/nsswitch.conf of sleep is not the one that merlab gave it")
def _(scene):
    """In sleep another /etc/nsswitch.conf lies over merlab's, with which the hosts file is asked last."""
    target = pod(scene, "sleep")
    write_atomic(target.folder / "other.conf", "hosts: dns files\n")
    from pathlib import Path

    with _covered(target, target.folder / "other.conf", Path("/etc/nsswitch.conf")):
        yield


#: Sends the same request again over the existing connection.
TWICE = """#!/bin/sh
for url; do :; done
exec {real} "$@" "$url"
"""


@lie("a curl that asks twice", "curl did not send exactly one request over one connection: num_connects is 0")
def _(scene):
    """The curl that the machine has is a script, which asks twice, over one connection."""
    target, real = pod(scene, "sleep"), system_tools.find("curl")
    write_atomic(target.folder / "curl", TWICE.format(real=real), mode=0o755)
    before = system_tools.FOLDERS
    system_tools.FOLDERS = (str(target.folder), *before)
    try:
        yield
    finally:
        system_tools.FOLDERS = before
