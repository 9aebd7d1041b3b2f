"""Lies on the path of packets: a detour between two links, NAT without a rule, and what lasts for one cell only."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys

from kernel_objects import (
    CGROUP_SKB,
    NETFILTER,
    NETFILTER_LINK,
    SCHED_CLS,
    TCX_INGRESS,
    attach_to_map,
    detach,
    held,
    link,
    netfilter_link,
    nothing,
)
from lies_mesh import pins, pod
from lies_plane import listeners
from saboteur import lie, oddity

from merbridge_lab import istio_facts
from merbridge_lab.adapters import bpf_maps, bpf_syscall, netlink_hooks, netns
from merbridge_lab.adapters.command import run

# -- a detour --------------------------------------------------------------------------------------------------------


@lie(
    "a bridge between a pod and the node",
    r"eth0 of sleep has its other end in another network namespace than the node's",
)
def _(scene):
    """sleep's link ends in a bridge elsewhere, and so does the node's to it; each has the index that its peer had."""
    target, node = pod(scene, "sleep"), scene.lab._node.netns
    between = scene.lab.machine.run / "netns" / "between"
    netns.create(between, netns.NEWNET)
    try:
        with contextlib.ExitStack() as stack:
            spaces = {name: str(stack.enter_context(held(os.open(path, os.O_RDONLY))))
                      for name, path in (("pod", target.netns), ("node", node))}  # fmt: skip

            def inside(where, *argv):
                descriptors = [int(each) for each in spaces.values()]
                subprocess.run(["nsenter", f"--net={where}", *argv], check=True, pass_fds=descriptors)

            inside(node, "ip", "link", "del", target.spec.veth)
            for own, index, name, space in (("far", 70, "eth0", "pod"), ("near", 71, target.spec.veth, "node")):
                inside(between, "ip", "link", "add", own, "index", str(index), "type", "veth", "peer", "name", name,
                       "index", str(141 - index), "netns", f"/proc/self/fd/{spaces[space]}")  # fmt: skip
            inside(between, "ip", "link", "add", "bridge", "up", "type", "bridge")
            for each in ("far", "near"):
                inside(between, "ip", "link", "set", each, "up", "master", "bridge")
            ip, gateway = target.spec.ip, "10.244.0.1"
            for where, name, own, other in ((node, target.spec.veth, gateway, ip), (target.netns, "eth0", ip, gateway)):
                inside(where, "ip", "address", "add", f"{own}/32", "dev", name)
                inside(where, "ip", "link", "set", name, "up")
                inside(where, "ip", "route", "add", f"{other}/32", "dev", name, "scope", "link")
            inside(node, "ip", "link", "set", target.spec.veth, "alias", target.spec.name)
            inside(target.netns, "ip", "route", "add", "default", "via", gateway)
            yield
    finally:
        netns.unpin(between)


# -- NAT without a rule ----------------------------------------------------------------------------------------------


def _nested(kind, *parts):
    body = b"".join(parts)
    return struct.pack("=HH", 4 + len(body), kind | 0x8000) + body


def _plain(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _tuple(kind, source, destination):
    (one, near), (other, far) = source, destination
    addresses = (_plain(1, socket.inet_aton(one)), _plain(2, socket.inet_aton(other)))
    ports = (_plain(1, b"\x06"), _plain(2, struct.pack("!H", near)), _plain(3, struct.pack("!H", far)))
    return _nested(kind, _nested(1, *addresses), _nested(2, *ports))


def translate(source, destination, instead, *, nat=True):
    """Create an entry of conntrack by hand, in the thread's namespace: what goes to `destination` goes to `instead`.

    Without `nat` it says only that answers come from `instead`, and nothing is translated.
    """
    body = b"".join(
        (
            _tuple(1, source, destination),
            _tuple(2, destination if nat else instead, source),
            _plain(3, struct.pack("!I", 0x08)),  # IPS_CONFIRMED
            _nested(4, _nested(1, _plain(1, b"\x03"))),  # established
            _nested(13, _plain(1, socket.inet_aton(instead[0])), _plain(2, socket.inet_aton(instead[0])),
                    _nested(3, _plain(1, struct.pack("!H", instead[1])), _plain(2, struct.pack("!H", instead[1])))),
            _plain(7, struct.pack("!I", 120)),
        )
    )  # fmt: skip
    _ask(0x100, 0x605, body)


def _ask(kind, flags, attributes):
    """Send a request to ctnetlink (nfnetlink's table 1), and check that it succeeded."""
    body = struct.pack("=BBH", socket.AF_INET, 0, 0) + attributes
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as asked:
        asked.send(netlink_hooks.HEADER.pack(netlink_hooks.HEADER.size + len(body), kind, flags, 1, 0) + body)
        (code,) = struct.unpack_from("=i", asked.recv(4096), netlink_hooks.HEADER.size)
    if code:
        raise OSError(-code, os.strerror(-code))


@lie(
    "NAT without a rule in {where}",
    r"conntrack of {where} sends what goes from 10.244.0.10:4\d+ to 10.244.0.1\d:\d+ to 10.244.0.12:5000",
    {"where": ["node", "sleep", "helloworld-v1"]},
)
def _(scene, where):
    """By hand, conntrack of {where} was told to send some connections to helloworld-v2; no rule says so."""
    place = scene.lab.machine.netns(where)

    def tell():
        for port in range(40000, 40020):
            ends = ("10.244.0.10", port), ("10.244.0.11", 5000), ("10.244.0.12", 5000)
            translate(*ends, nat=where != "helloworld-v1")

    def forget():
        for port in range(40000, 40020):
            with contextlib.suppress(FileNotFoundError):  # its time has run out
                _ask(0x102, 0x5, _tuple(1, ("10.244.0.10", port), ("10.244.0.11", 5000)))

    netns.run_inside(place, tell)
    yield
    netns.run_inside(place, forget)


# -- for one cell only -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _both(scene, where, there, gone):
    """Run one command in a namespace, and the other one afterwards."""
    inside = f"--net={scene.lab.machine.netns(where)}"
    run(["nsenter", inside, *there.split()])
    try:
        yield
    finally:
        run(["nsenter", inside, *gone.split()])


#: What → (where, how it is added, how it is removed, what the cause says).
PASSING = {
    "a policy rule": (
        "node", "ip rule add prio 100 from 192.0.2.1 lookup 7", "ip rule del prio 100",
        "in the node's network namespace the rule 100: ipv4 table 7 .* came during verification",
    ),
    "a policy route": (
        "sleep", "ip route add 192.0.2.0/24 via 10.244.0.1 table 7", "ip route flush table 7",
        "in the network namespace of sleep the route unicast 192.0.2.0/24 .*table 7 .* came during verification",
    ),
    "an address": (
        "helloworld-v1", "ip address add 192.0.2.1/32 dev lo", "ip address del 192.0.2.1/32 dev lo",
        "in the network namespace of helloworld-v1 the (address|route) .*192.0.2.1/32 dev lo.* came during",
    ),
    "a short packet size": (
        "helloworld-v2", "ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500",
        r"in the network namespace of helloworld-v2 the link eth0 \(veth\) up mtu 1400 came during verification",
    ),
    "a missing route": (
        "helloworld-v2", "ip route del broadcast 127.255.255.255 dev lo table local",
        "ip route add broadcast 127.255.255.255 dev lo table local scope link src 127.0.0.1 proto kernel",
        "in the network namespace of helloworld-v2 the route broadcast 127.255.255.255/32 .* went during verification",
    ),
    "a neighbour set by hand": (
        "node", "ip neigh replace 10.244.0.77 lladdr 02:00:00:00:00:01 dev veth11 nud permanent",
        "ip neigh del 10.244.0.77 dev veth11",
        "in the node's network namespace the neighbour 10.244.0.77 at 02:.* came during verification",
    ),
    "a link": (
        "node", "ip link add strange type veth peer stranger", "ip link del strange",
        r"in the node's network namespace the .*strange.* came during verification",
    ),
    "a queue": (
        "helloworld-v1", "tc qdisc add dev eth0 clsact", "tc qdisc del dev eth0 clsact",
        "in the network namespace of helloworld-v1 the queueing discipline clsact dev eth0 came during verification",
    ),
    "a setting": (
        "helloworld-v1", "sysctl -q -w net.ipv4.tcp_fwmark_accept=1", "sysctl -q -w net.ipv4.tcp_fwmark_accept=0",
        "in the network namespace of helloworld-v1 ipv4/tcp_fwmark_accept was 1, not 0, while",
    ),
    "a rule that drops nothing yet": (
        "helloworld-v1", "iptables-nft -t mangle -A PREROUTING -s 192.0.2.1 -j DROP",
        "iptables-nft -t mangle -D PREROUTING -s 192.0.2.1 -j DROP",
        "in the network namespace of helloworld-v1 the nftables table ip mangle changed",
    ),
    "a native table": (
        "node", "nft add table inet strange", "nft delete table inet strange",
        "in the node's network namespace the nftables table inet strange changed",
    ),
    "a setting that no batch reads": (
        "sleep", "sysctl -q -w net.ipv4.tcp_sack=0", "sysctl -q -w net.ipv4.tcp_sack=1",
        "in the network namespace of sleep the setting ipv4/tcp_sack was written during verification",
    ),
    "route_localnet": (
        "node", "sysctl -q -w net.ipv4.conf.all.route_localnet=1", "sysctl -q -w net.ipv4.conf.all.route_localnet=0",
        "in the node's network namespace ipv4/conf/all/route_localnet was 1, not 0, while",
    ),
}  # fmt: skip


def _register(what, where, there, gone, cause):
    def sabotage(scene):
        with _while(scene, "matrix begins", "batch 2 ends", _both(scene, where, there, gone)):
            yield

    sabotage.__doc__ = f"While the fourth and fifth cell are measured, there is {what} in {where}: {there}."
    quick = what in {"a policy rule", "a setting"}
    lie(f"{what} of {where} for one cell", cause, quick=quick)(sabotage)


def _while(scene, begin, end, lies):
    stack = contextlib.ExitStack()
    scene.at(begin, lambda: stack.enter_context(lies))
    scene.at(end, stack.close)
    return stack


for _what, _how in PASSING.items():
    _register(_what, *_how)


@contextlib.contextmanager
def _skb(scene):
    place = pod(scene, "helloworld-v1").cgroup / "sidecar"
    with held(nothing(CGROUP_SKB, name="passing")) as program, held(os.open(place, os.O_RDONLY)) as cgroup:
        attach_to_map(program, cgroup, 1)
        try:
            yield
        finally:
            detach(program, cgroup, 1)


@lie(
    "a program on a cgroup for one cell",
    r"on the cgroup .*helloworld-v1/sidecar egress .* runs another program, passing",
)
def _(scene):
    """While the fourth and fifth cell are measured, a program sees what helloworld-v1's sidecar sends."""
    with _while(scene, "matrix begins", "batch 2 ends", _skb(scene)):
        yield


@contextlib.contextmanager
def _tcx(scene):
    def hang():
        with held(nothing(SCHED_CLS, TCX_INGRESS, name="passing", verdict=0)) as program:
            return link(program, socket.if_nametoindex("eth0"), TCX_INGRESS)

    with held(netns.run_inside(pod(scene, "helloworld-v2").netns, hang)):
        yield


@lie("a program on a link for one cell", r"on the link eth0 of helloworld-v2 there is tcx ingress: passing")
def _(scene):
    """While the fourth and fifth cell are measured, a program sees what comes to helloworld-v2 over its link."""
    with _while(scene, "matrix begins", "batch 2 ends", _tcx(scene)):
        yield


@contextlib.contextmanager
def _hooked(scene):
    where = pod(scene, "helloworld-v1").netns
    with (
        held(nothing(NETFILTER, NETFILTER_LINK, name="passing")) as program,
        held(netns.run_inside(where, lambda: netfilter_link(program))),
    ):
        yield


@lie("a netfilter program for one cell", r"(on )?netfilter.* passing \(id \d+\)", shared=True)
def _(scene):
    """While the fourth and fifth cell are measured, a program is on the output hook of helloworld-v1."""
    with _while(scene, "matrix begins", "batch 2 ends", _hooked(scene)):
        yield


# -- sockets ---------------------------------------------------------------------------------------------------------

_TCP_DEFER_ACCEPT, _TCP_MAXSEG = 9, 2
_IP_TTL = 2
OPTIONS = {
    "TCP_DEFER_ACCEPT": (socket.IPPROTO_TCP, _TCP_DEFER_ACCEPT, 30),
    "SO_MARK": (socket.SOL_SOCKET, 36, 7),
    "IP_TTL": (socket.IPPROTO_IP, _IP_TTL, 3),
}


@lie(
    "{option} on the listener of the {kind}",
    r"{option} of the listener at \S+ of the {kind} of helloworld-v1 .* is \d+, not \d+",
    {"option": list(OPTIONS), "kind": ["sidecar", "app"]},
    quick={"TCP_DEFER_ACCEPT"},
)
def _(scene, option, kind):
    """Somebody set {option} on the socket where the {kind} of helloworld-v1 listens, from outside."""
    level, name, value = OPTIONS[option]
    kept = []
    for sock in listeners(pod(scene, "helloworld-v1"), kind, {"app": 5000, "sidecar": 15006}[kind]):
        # Not with sock.dup(): that would make a listener blocking, also in the process that has it.
        kept.append((socket.socket(fileno=os.dup(sock.fileno())), sock.getsockopt(level, name)))
        sock.setsockopt(level, name, value)
    yield
    for sock, before in kept:
        with sock:
            sock.setsockopt(level, name, before)


@lie("a listener that waits", "the listener at .*:15006 of the sidecar of helloworld-v1 .* has lost O_NONBLOCK")
def _(scene):
    """Somebody took O_NONBLOCK from the listeners of helloworld-v1's sidecar: it would stand still at each."""
    kept = []
    for sock in listeners(pod(scene, "helloworld-v1"), "sidecar", 15006):
        kept.append(socket.socket(fileno=os.dup(sock.fileno())))
        os.set_blocking(sock.fileno(), True)
    yield
    for sock in kept:
        with sock:
            os.set_blocking(sock.fileno(), False)


BESIDE = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
server.bind(("0.0.0.0", 15006))
server.listen()
print("there", flush=True)
sys.stdin.read()
"""


@lie(
    "a second listener beside the sidecar's",
    r"port 15006 of helloworld-v1 is served by .* \(pid \d+\), not only by its",
)
def _(scene):
    """A process of the sidecar's user listens on 15006 of helloworld-v1 as well, and gets its share of connections."""
    argv = pod(scene, "helloworld-v1").argv_as_root([sys.executable, "-I", "-c", BESIDE, str(istio_facts.SIDECAR_UID)])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == b"there\n"
        yield
        server.stdin.close()


# -- maps ------------------------------------------------------------------------------------------------------------


@lie("junk in the map {name}", "the map {name} holds", {"name": ["pairs", "counters"]}, quick={"pairs"})
def _(scene, name):
    """The map {name} is filled to the brim with entries of no connection."""
    with pins(scene).open_map(name) as fd:
        seen = bpf_syscall.map_info(fd)
        keys = []
        for number in range(seen.max_entries):
            key = (0xDEAD0000_00000000 | number).to_bytes(8, "little").ljust(seen.key_size, b"\xdd")[: seen.key_size]
            try:
                bpf_maps.update(fd, key, bytes(seen.value_size * (os.cpu_count() if name == "counters" else 1)))
            except OSError as error:
                if error.errno not in (errno.E2BIG, errno.ENOMEM):
                    raise
                break
            keys.append(key)
        yield
        for key in keys:
            bpf_maps.delete(fd, key)


# -- no lies ---------------------------------------------------------------------------------------------------------


@oddity("somebody captures packets", quick=True)
def _(scene):
    """Packet sockets are open in the node and in a pod, one there from the second cell on, as tcpdump has."""
    with contextlib.ExitStack() as stack:

        def listen(where, protocol, link):
            def work():
                sock = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol)))
                sock.bind((link, protocol))
                # PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC
                sock.setsockopt(263, 1, struct.pack("=iHH8x", socket.if_nametoindex(link), 1, 0))

            netns.run_inside(scene.lab.machine.netns(where), work)

        listen("node", 3, "veth10")
        listen("helloworld-v1", 0, "lo")
        scene.at("batch 3 ends", lambda: listen("helloworld-v1", 3, "eth0"))
        yield
