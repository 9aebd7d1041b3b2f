"""Lies about what the kernel does in the lab's network namespaces: settings, lifetimes, attributes, names."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from lies_mesh import end, pod
from lies_pods import at, at_node
from saboteur import lie, oddity

from merbridge_lab import istio_facts
from merbridge_lab.adapters import mounts, netns
from merbridge_lab.adapters.command import run
from merbridge_lab.labs.embedded import namespaces, topology
from merbridge_lab.polling import poll_until

# -- settings --------------------------------------------------------------------------------------------------------

#: Setting → (value, its name in the cause).
SETTINGS = {
    "net.ipv4.ip_default_ttl": ("1", "ipv4/ip_default_ttl is 1, not 64"),
    "net.core.somaxconn": ("0", "core/somaxconn is 0, not"),
    "net.ipv4.tcp_rmem": ("1 1 1", "ipv4/tcp_rmem is 1 1 1, not"),
    "net.ipv4.tcp_max_syn_backlog": ("1", "ipv4/tcp_max_syn_backlog is 1, not"),
    "net.ipv4.tcp_synack_retries": ("0", "ipv4/tcp_synack_retries is 0, not 5"),
    "net.ipv4.tcp_tw_reuse": ("1", "ipv4/tcp_tw_reuse is 1, not"),
    "net.ipv4.conf.eth0.forwarding": ("1", "ipv4/conf/eth0/forwarding is 1, not 0"),
    "net.ipv4.conf.all.arp_announce": ("2", "ipv4/conf/all/arp_announce is 2, not 0"),
    "net.ipv4.conf.default.promote_secondaries": ("1", "ipv4/conf/default/promote_secondaries is 1, not 0"),
    "net.ipv4.conf.lo.disable_policy": ("0", "ipv4/conf/lo/disable_policy is 0, not 1"),
    "net.ipv4.neigh.eth0.ucast_solicit": ("0", "ipv4/neigh/eth0/ucast_solicit is 0, not 3"),
    "net.ipv6.conf.eth0.disable_ipv6": ("1", "ipv6/conf/eth0/disable_ipv6 is 1, not 0"),
    "net.netfilter.nf_conntrack_tcp_timeout_established": (
        "1",
        "netfilter/nf_conntrack_tcp_timeout_established is 1, not 432000",
    ),
}


def _set(setting, value, cause):
    def sabotage(scene):
        at(pod(scene, "helloworld-v2"), "sysctl", "-q", "-w", f"{setting}={value}")
        yield

    sabotage.__doc__ = f"In helloworld-v2's network namespace {setting} is {value}, which no new one has."
    quick = setting in {"net.ipv4.ip_default_ttl", "net.ipv4.tcp_rmem"}
    lie(f"{setting} altered in helloworld-v2", f"in the network namespace of helloworld-v2 {cause}", quick=quick)(
        sabotage
    )


for _setting, (_value, _cause) in SETTINGS.items():
    _set(_setting, _value, _cause)


@lie("one link of the node does not forward", "in the node's network namespace ipv4/conf/veth11/forwarding is 0, not 1")
def _(scene):
    """The node forwards nothing that comes in from helloworld-v1; ip_forward is on as before."""
    at_node(scene, "sysctl", "-q", "-w", "net.ipv4.conf.veth11.forwarding=0")
    yield


@lie(
    "settings of sleep covered", "sysctl:/proc/sys/net could not be read: something is mounted over .*/all", shared=True
)
def _(scene):
    """Over the settings of all links of sleep lie files that say what is wanted."""
    place = Path("/proc/sys/net/ipv4/conf/all")
    where = pod(scene, "sleep").netns
    netns.run_inside(where, lambda: mounts.mount("none", place, "tmpfs"))
    try:
        yield
    finally:
        netns.run_inside(where, lambda: mounts.umount(place))


# -- links, addresses, routes, IPsec ---------------------------------------------------------------------------------

WAYS = {
    "an address for a limited time": (
        ["ip", "address", "change", "10.244.0.10/32", "dev", "eth0", "valid_lft", "600", "preferred_lft", "600"],
        "in the network namespace of sleep the address 10.244.0.10/32 dev eth0 is for a limited time",
    ),
    "a deprecated address": (
        ["ip", "address", "change", "10.244.0.10/32", "dev", "eth0", "preferred_lft", "0"],
        "in the network namespace of sleep the address 10.244.0.10/32 dev eth0 is deprecated",
    ),
    "a promiscuous link": (
        ["ip", "link", "set", "eth0", "promisc", "on"],
        r"in the network namespace of sleep the link eth0 \(veth\) up mtu 1500 is promiscuous",
    ),
    "a link in a group, with small segments": (
        ["ip", "link", "set", "eth0", "group", "7", "gso_max_segs", "1"],
        r"in the network namespace of sleep the link eth0 \(veth\) up mtu 1500 is group 7 GSO segments 1",
    ),
    "a short queue": (
        ["ip", "link", "set", "eth0", "txqueuelen", "1"],
        r"in the network namespace of sleep the link eth0 \(veth\) up mtu 1500 is queue length 1",
    ),
    "a route with a path MTU": (
        ["ip", "route", "change", "default", "via", "10.244.0.1", "mtu", "lock", "600"],
        "in the network namespace of sleep the route unicast default .*RTAX_MTU.* 600",
    ),
    "a route that takes its time": (
        ["ip", "route", "change", "default", "via", "10.244.0.1", "rto_min", "4s", "initcwnd", "1"],
        "in the network namespace of sleep the route unicast default .*RTAX_RTO_MIN",
    ),
    "a next hop object": (
        ["ip", "nexthop", "add", "id", "7", "via", "10.244.0.1", "dev", "eth0"],
        "the network namespace of sleep has a next hop that is not merlab's",
    ),
    "IPsec's default policy": (
        ["ip", "xfrm", "policy", "setdefault", "out", "block"],
        "the network namespace of sleep has an IPsec rule that is not merlab's: by default: output is blocked",
    ),
}


def _register(way, argv, cause):
    def sabotage(scene):
        at(pod(scene, "sleep"), *argv)
        yield

    sabotage.__doc__ = f"In sleep's network namespace there is {way}: {' '.join(argv)}."
    lie(f"{way} in sleep", cause, quick=way in {"an address for a limited time", "IPsec's default policy"})(sabotage)


for _way, (_argv, _cause) in WAYS.items():
    _register(_way, _argv, _cause)


@lie("a node that drops by IPsec", "the node's network namespace has an IPsec rule .*by default: forward is blocked")
def _(scene):
    """The node's default policy of IPsec is to forward nothing."""
    at_node(scene, "ip", "xfrm", "policy", "setdefault", "fwd", "block")
    yield


# -- processes -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def first_freezer():
    """Return the freezer of cgroup version 1 if the machine has it mounted, or mount it temporarily."""
    there = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()
             if line.split()[2] == "cgroup" and "freezer" in line.split()[3].split(",")]  # fmt: skip
    if there:
        yield Path(there[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        mounts.mount("none", Path(folder), "cgroup", data="freezer")
        try:
            yield Path(folder)
        finally:
            mounts.umount(Path(folder))


@lie("sidecar of sleep frozen by another freezer", "the sidecar of sleep is frozen .*freezer.state of .*/merlab-frozen")
def _(scene):
    """sleep's Envoy is frozen by a cgroup of version 1; its own cgroup is not."""
    target = pod(scene, "sleep")
    with first_freezer() as top:
        place = top / "merlab-frozen"
        place.mkdir()
        pid = target.sidecar_pid
        (place / "cgroup.procs").write_text(str(pid))
        (place / "freezer.state").write_text("FROZEN")
        yield
        (place / "freezer.state").write_text("THAWED")
        (top / "cgroup.procs").write_text(str(pid))
        assert poll_until(
            lambda: not (place / "cgroup.procs").read_text(), timeout=5, awaiting="the freezer to be left"
        )
        place.rmdir()


def by_way_of(target, kind, *prefix):
    """Start a process of a pod as merlab does, except for the given prefix."""
    end(target, kind)
    user = istio_facts.SIDECAR_UID if kind == "sidecar" else topology.APP_ID
    argv = [*prefix, *target.processes._argv(kind)]
    log = target.folder / "sabotage.log"
    run(namespaces.as_daemon(target.cgroup / kind, target.netns, target.mntns, user, log, argv))
    assert poll_until(lambda: target._answers(kind), timeout=10, awaiting=f"the {kind}")


#: Whatever this runs has a filter that lets another process answer acct(2), and passes the descriptor for the answers
#: through the last argument's socket. (The filter: load the number of the system call; if it is that one, ask; else let
#: it pass.)
SUPERVISED = """
import ctypes, os, socket, struct, sys
path, *argv = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
seccomp, acct = {"x86_64": (317, 163), "aarch64": (277, 89)}[os.uname().machine]
steps = ((0x20, 0, 0, 0), (0x15, 0, 1, acct), (6, 0, 0, 0x7FC00000), (6, 0, 0, 0x7FFF0000))
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
notify = libc.syscall(seccomp, 1, 8, program)
assert notify >= 0, ctypes.get_errno()
with socket.socket(socket.AF_UNIX) as other:
    other.connect(path)
    socket.send_fds(other, [b"!"], [notify])
os.execv(argv[0], argv)
"""


@lie(
    "a sidecar whose system calls another answers", r"the sidecar of sleep .*seccomp filter, and process \d+ may answer"
)
def _(scene):
    """sleep's Envoy runs under a seccomp filter that asks another process, which may give it any socket for its own."""
    target = pod(scene, "sleep")
    path = target.folder / "supervisor"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o666)
        server.listen()
        held = []

        def hold():
            asked, _ = server.accept()
            with asked:
                held.extend(socket.recv_fds(asked, 1, 1)[1])

        keeper = threading.Thread(target=hold)
        keeper.start()
        by_way_of(target, "sidecar", "/usr/bin/python3", "-I", "-c", SUPERVISED, str(path))
        keeper.join()
        path.unlink()  # it is not what this is about
        yield
        os.close(held[0])
    end(target)


@oddity("a sidecar that comes last")
def _(scene):
    """sleep's Envoy runs only when nobody else wants to (SCHED_IDLE, nice 19), and goes first when memory is short."""
    target = pod(scene, "sleep")
    by_way_of(target, "sidecar", "nice", "-n", "19", "chrt", "--idle", "0")
    Path(f"/proc/{target.sidecar_pid}/oom_score_adj").write_text("1000")
    yield
    end(target)


# -- names -----------------------------------------------------------------------------------------------------------

CACHE = Path(__file__).with_name("false_nscd.py")


@contextlib.contextmanager
def cached(target, path, address):
    """Answer names in the pod as nscd would, at `path`: a service's name is `address`."""
    inside = ["nsenter", f"--mount={target.mntns}", "--"]
    argv = [*inside, "/usr/bin/python3", "-I", "-", path, address]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        server.stdin.write(CACHE.read_bytes())
        server.stdin.close()
        try:
            assert server.stdout.readline() == b"there\n"
            yield
        finally:
            server.kill()
            subprocess.run([*inside, "rm", "-rf", str(Path(path).parent)], check=True)


@lie("a false name service cache", "a name service cache answers names in sleep, before /etc/hosts")
def _(scene):
    """In sleep a false nscd says that helloworld is helloworld-v1's own address."""
    with cached(pod(scene, "sleep"), "/run/nscd/socket", "10.244.0.11"):
        yield


@lie(
    "a false name service cache meanwhile",
    "it was sent to 10.244.0.11, but helloworld is 10.96.0.10|there is /run/nscd, which merlab",
)
def _(scene):
    """The same from the moment on that step 9 begins."""
    with contextlib.ExitStack() as stack:
        false = cached(pod(scene, "sleep"), "/run/nscd/socket", "10.244.0.11")
        scene.at("step 9 begins", lambda: stack.enter_context(false))
        yield


NAMELESS = """
import socket, sys, threading
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
def answer():
    while True:
        asked, sender = server.recvfrom(512)
        server.sendto(asked[:2] + bytes([0x81, 0x83]) + asked[4:], sender)
threading.Thread(target=answer, daemon=True).start()
print("there", flush=True)
sys.stdin.read()
"""


@oddity("a foreign name server in a pod")
def _(scene):
    """A process of root's answers DNS in sleep, and has no name; those of the lab are all in /etc/hosts."""
    argv = pod(scene, "sleep").argv_as_root([sys.executable, "-I", "-c", NAMELESS])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == b"there\n"
        yield
        server.stdin.close()
